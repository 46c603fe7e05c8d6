"""Finds the images most like each image: `python retrieval.py --weights WEIGHTS IMAGE...`.

An image is the direction of its pooled features; the nearest ones have the largest cosine. Without images the first of
scikit-learn's digits are compared, which random weights already tell apart to a degree.
"""

import argparse

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

import twins_jax

parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("images", nargs="*", help="image files")
parser.add_argument("--weights", help="a checkpoint of a classifier; random weights without one")
parser.add_argument("--variant", default="twins_svt_tiny", help="of random weights")
parser.add_argument("--nearest", type=int, default=3, help="images to show for each")
args = parser.parse_args()

# Without classes a model returns its pooled features.
if args.weights:
    model = twins_jax.from_pretrained(args.weights, num_classes=0)
else:
    model = twins_jax.create_model(args.variant, num_classes=0, rngs=nnx.Rngs(0))
apply, params = twins_jax.split_model(model)
embed = jax.jit(apply)

if args.images:
    names = args.images
    features = np.concatenate([embed(params, twins_jax.preprocess(image, model.preprocessing)) for image in names])
else:
    digits = load_digits()
    pixels = np.float32(digits.images[:200] / 8 - 1).repeat(4, axis=1).repeat(4, axis=2)
    names = [f"digit {i}, a {label}" for i, label in enumerate(digits.target[:200])]
    features = np.asarray(embed(params, pixels[..., None].repeat(3, axis=3)))

features = features / np.linalg.norm(features, axis=1, keepdims=True)
cosines = features @ features.T
np.fill_diagonal(cosines, -np.inf)  # an image is not its own neighbor
for name, row in zip(names, cosines, strict=True):
    nearest = np.argsort(-row)[: min(args.nearest, len(names) - 1)]
    print(f"{name}: " + "; ".join(f"{names[i]} ({row[i]:.3f})" for i in nearest))
