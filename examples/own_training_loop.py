"""Trains a Twins backbone in a loop of your own: `python own_training_loop.py --steps 100`.

The images are scikit-learn's digits, 8x8 pixels, enlarged to the 32x32 that a backbone needs at least.
"""

import argparse

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import twins_jax


class Classifier(nnx.Module):
    """A linear layer on the mean of the backbone's last map."""

    def __init__(self, variant: str, *, rngs: nnx.Rngs) -> None:
        self.backbone = twins_jax.create_backbone(variant, rngs=rngs)
        self.head = nnx.Linear(self.backbone.num_features, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(self.backbone(images)[-1].mean(axis=(1, 2)))


@nnx.jit
def train_step(model: Classifier, optimizer: nnx.Optimizer, images: np.ndarray, labels: np.ndarray) -> jax.Array:
    """Updates model and optimizer in place; returns the loss."""

    def loss(model: Classifier) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("--variant", default="twins_svt_tiny", help="one of twins_jax.list_models()")
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()

digits = load_digits()
images = np.float32(digits.images / 8 - 1).repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
labels = digits.target
train, test = slice(0, 1500), slice(1500, None)

model = Classifier(args.variant, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(1e-3, weight_decay=0.05), wrt=nnx.Param)
order = np.random.default_rng(0)
for step in range(args.steps):
    batch = order.integers(0, train.stop, 64)
    value = train_step(model, optimizer, images[batch], labels[batch])
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {value:.3f}")
accuracy = (nnx.jit(lambda model, x: model(x))(model, images[test]).argmax(axis=-1) == labels[test]).mean()
print(f"accuracy on {len(labels[test])} other digits: {accuracy:.3f}")
