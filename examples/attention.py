"""Draws where a position of an image looks: `python attention.py IMAGE --weights WEIGHTS --query 80 120`.

Without an image it is scikit-learn's photograph of a flower. Random weights attend to everything nearly alike.
"""

import argparse

from flax import nnx
from sklearn.datasets import load_sample_image

import twins_jax

parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
parser.add_argument("image", nargs="?", help="an image file")
parser.add_argument("--weights", help="a checkpoint of a classifier; random weights without one")
parser.add_argument("--variant", default="twins_svt_tiny", help="of random weights")
parser.add_argument(
    "--block", type=int, default=-1, help="counted over all stages; in SVT even ones of a stage are LSA"
)
parser.add_argument("--head", type=int, help="one head instead of the mean over all")
parser.add_argument("--query", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="a pixel; the center if left out")
parser.add_argument("--out", default="attention.png", help="the picture to write")
args = parser.parse_args()

if args.weights:
    model = twins_jax.from_pretrained(args.weights)
else:
    model = twins_jax.create_model(args.variant, rngs=nnx.Rngs(0))
image = twins_jax.preprocess(args.image or load_sample_image("flower.jpg"), model.preprocessing)
query = args.query or (image.shape[1] // 2, image.shape[2] // 2)
picture = twins_jax.visualize.attention_overlay(model, image, query, block=args.block, head=args.head)
picture.save(args.out)
print(f"{args.out}: {picture.width}x{picture.height}, attention of the pixel {query[0]}, {query[1]}")
