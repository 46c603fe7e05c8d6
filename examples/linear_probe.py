"""Trains what is above frozen stages: `python linear_probe.py --weights WEIGHTS --frozen_stages 4`.

With 4 frozen stages, all of the backbone, the final norm and the head learn. The images are scikit-learn's digits.
"""

import argparse
import functools

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import twins_jax

parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("--weights", help="a checkpoint; random weights without one")
parser.add_argument("--variant", default="twins_svt_tiny", help="of random weights")
parser.add_argument("--frozen_stages", type=int, default=4)
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()

digits = load_digits()
images = np.float32(digits.images / 8 - 1).repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
labels = digits.target
train, test = slice(0, 1500), slice(1500, None)

if args.weights:
    model = twins_jax.from_pretrained(args.weights, num_classes=10, rngs=nnx.Rngs(0))  # with a fresh head
else:
    model = twins_jax.create_model(args.variant, num_classes=10, rngs=nnx.Rngs(0))
apply, params = twins_jax.split_model(model)
frozen = twins_jax.param_mask(params, twins_jax.stages_below(model, args.frozen_stages))
optimizer = optax.multi_transform({True: optax.set_to_zero(), False: optax.adamw(3e-3)}, frozen)
state = optimizer.init(params)  # has nothing for the frozen parameters


@functools.partial(jax.jit, donate_argnums=1)
def train_step(params: twins_jax.Params, state: optax.OptState, images: jax.Array, labels: jax.Array) -> tuple:
    """Returns the new parameters and optimizer's state, and the loss. JAX leaves out gradients that nothing reads."""

    def loss(params: twins_jax.Params) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


order = np.random.default_rng(0)
for step in range(args.steps):
    batch = order.integers(0, train.stop, 64)
    params, state, value = train_step(params, state, images[batch], labels[batch])
    if step % 10 == 0 or step == args.steps - 1:
        print(f"step {step}: loss {value:.3f}")
accuracy = (jax.jit(apply)(params, images[test]).argmax(axis=-1) == labels[test]).mean()
print(f"accuracy on {len(labels[test])} other digits: {accuracy:.3f}")
