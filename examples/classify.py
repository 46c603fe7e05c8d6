"""Classifies photographs: `python classify.py --weights WEIGHTS IMAGE...`.

WEIGHTS is anything that `twins_jax.from_pretrained` reads, such as timm's .safetensors of a Twins model. Without
arguments a model with random weights answers about scikit-learn's photograph of a flower: it does not know flowers.
"""

import argparse

from flax import nnx
from sklearn.datasets import load_sample_image

import twins_jax

parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("images", nargs="*", help="image files")
parser.add_argument("--weights", help="a checkpoint of a classifier")
args = parser.parse_args()

if args.weights:
    model = twins_jax.from_pretrained(args.weights)
else:
    print("random weights: pass --weights for answers with a meaning")
    model = twins_jax.create_model("twins_svt_tiny", num_classes=10, rngs=nnx.Rngs(0))

images = args.images or [load_sample_image("flower.jpg")]
for name, answers in zip(args.images or ["flower.jpg"], twins_jax.classify(model, images), strict=True):
    print(name)
    for answer in answers:
        print(f"  {answer.probability:6.1%}  {answer.name}")
