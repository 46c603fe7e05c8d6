"""Attention weights against a slow computation in float64, and the pixels at which a query looks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import twins_jax
from tests.support.models import PCPVT, SVT, backbone, classifier, random_array, random_module
from twins_jax import InputError
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.config import WindowPadding
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalize
from twins_jax.visualize import CYAN, MOST, WHITE, attention_heatmap, attention_maps, attention_overlay

DIM, HEADS, HEAD_DIM = 8, 2, 4
MODEL, ONE = backbone(SVT), random_array(1, 75, 149, 3)
Weights = dict[str, np.ndarray]


def arrays(layer: nnx.Module) -> Any:
    """The layer's parameters in float64, as attributes of nested objects."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(layer)))


def linear(x: np.ndarray, params: Weights) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def of_head(x: np.ndarray, head: int) -> np.ndarray:
    return x[..., head * HEAD_DIM : (head + 1) * HEAD_DIM]


def slow_lsa(params: Any, x: np.ndarray, size: int, masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights [heads, H, W, size, size] and output of one map [H, W, C], query by query."""
    height, width, _ = x.shape
    padded = np.zeros((height + size, width + size, DIM))
    padded[:height, :width] = x
    query, key, value = np.split(linear(padded, params["qkv"]), 3, axis=-1)
    masked = np.ones(padded.shape[:2], bool) & masks
    masked[:height, :width] = False
    weights, attended = np.zeros((HEADS, height, width, size, size)), np.zeros((height, width, DIM))
    for head, i, j in np.ndindex(HEADS, height, width):
        window = np.s_[i // size * size : i // size * size + size, j // size * size : j // size * size + size]
        scores = of_head(key[window], head) @ of_head(query[i, j], head) / HEAD_DIM**0.5
        scores = np.where(masked[window], -np.inf, scores)
        weights[head, i, j] = softmax(scores.ravel()).reshape(size, size)
        attended[i, j, head * HEAD_DIM :][:HEAD_DIM] = np.einsum(
            "ij,ijc->c", weights[head, i, j], of_head(value[window], head)
        )
    return weights, linear(attended, params["proj"])


@pytest.mark.parametrize("window_padding", ["zero", "mask"])
@pytest.mark.parametrize(("height", "width"), [(5, 8), (6, 8), (2, 1)])
def test_weights_of_lsa(window_padding: WindowPadding, height: int, width: int) -> None:
    size = 3
    config = dataclasses.replace(SVT, window_padding=window_padding, dtype=jnp.float64, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        layer = random_module(lambda: LocallyGroupedAttention(DIM, HEADS, size, config=config, rngs=nnx.Rngs(0)))
        x = np.random.default_rng(0).standard_normal((2, height, width, DIM))
        found, output = jax.jit(lambda x: (layer.weights(x), layer(x)))(x)
        masks = window_padding == "mask" and height % size > 0 and width % size > 0  # see `padding_bias`
        for image in range(2):
            weights, expected = slow_lsa(arrays(layer), x[image], size, masks)
            np.testing.assert_allclose(found[image], weights, rtol=0, atol=1e-14)
            np.testing.assert_allclose(output[image], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ratio", [1, 2])
def test_weights_of_gsa(ratio: int) -> None:
    config = dataclasses.replace(SVT, dtype=jnp.float64, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        layer = random_module(lambda: GlobalSubSampledAttention(DIM, HEADS, ratio, config=config, rngs=nnx.Rngs(0)))
        x = np.random.default_rng(0).standard_normal((2, 5, 8, DIM))
        found, output = jax.jit(lambda x: (layer.weights(x), layer(x)))(x)
        params, keys = arrays(layer), x
        if ratio > 1:
            squares = x[:, :4].reshape(2, 2, 2, 4, 2, DIM)
            sums = np.einsum("bhiwjc,ijcd->bhwd", squares, params["sub_sample"]["kernel"])
            sums += params["sub_sample"]["bias"]
            centered = sums - sums.mean(axis=-1, keepdims=True)
            normal = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-5)
            keys = normal * params["norm"]["scale"] + params["norm"]["bias"]
    query, (key, value) = linear(x, params["q"]), np.split(linear(keys, params["kv"]), 2, axis=-1)
    attended = []
    for head in range(HEADS):
        scores = np.einsum("bhwc,bijc->bhwij", of_head(query, head), of_head(key, head)) / HEAD_DIM**0.5
        weights = softmax(scores.reshape(*scores.shape[:3], -1)).reshape(scores.shape)
        np.testing.assert_allclose(found[:, head], weights, rtol=0, atol=1e-14)
        attended.append(np.einsum("bhwij,bijc->bhwc", weights, of_head(value, head)))
    expected = linear(np.concatenate(attended, axis=-1), params["proj"])
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-13)


def patches_only(config: twins_jax.TwinsConfig) -> twins_jax.TwinsBackbone:
    """A backbone whose blocks and PEGs change nothing: a position has seen the pixels of its own patch alone."""
    model = backbone(config)
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param) and "patch_embed" not in path and {"fc2", "peg", "proj"} & set(path):
            node[...] = jnp.zeros(node.shape)
    return model


HEIGHT, WIDTH = 75, 149
"""Maps of 18x37, 9x18, 4x9 and 2x4: windows of 7 tile none of them; the last 3 rows and 1 column are of no patch."""

MASK = dataclasses.replace(SVT, window_padding="mask")
CASES = {
    # name: (config, block, query, changed pixel, its key's top, left, bottom and right, those of all keys)
    "LSA of stride 4": (SVT, 0, (30, 65), (29, 82), (28, 80, 32, 84), (28, 56, 56, 84)),
    "LSA of stride 4, padded": (SVT, 0, (71, 147), (56, 143), (56, 140, 60, 144), (56, 140, 72, 148)),
    "LSA of stride 4, masked": (MASK, 0, (71, 147), (56, 143), (56, 140, 60, 144), (56, 140, 72, 148)),
    "LSA of stride 8, padded": (SVT, 2, (70, 60), (64, 111), (64, 104, 72, 112), (56, 56, 72, 112)),
    "GSA of ratio 8": (SVT, 1, (71, 147), (40, 3), (32, 0, 64, 32), (0, 0, 64, 128)),
    "GSA of ratio 2": (PCPVT, 2, (63, 0), (63, 127), (32, 96, 64, 128), (0, 0, 64, 128)),
}


def box(sides: tuple[int, int, int, int]) -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[sides[0] : sides[2], sides[1] : sides[3]] = True
    return inside


@pytest.mark.parametrize("name", CASES)
def test_the_pixels_at_which_a_query_looks(name: str) -> None:
    """A changed pixel changes the weight of one key relative to the others, which share what is left as before."""
    config, block, query, pixel, key, seen = CASES[name]
    model, images = patches_only(config), random_array(1, HEIGHT, WIDTH, 3)
    changed = images.copy()
    changed[0, pixel[0], pixel[1]] += (3, 0, -3)
    before, after = (attention_heatmap(model, x, query, block=block, head=-1) for x in (images, changed))
    assert (before.dtype, before.sum() > 0.9999) == (np.float32, "padded" not in name)  # else padding has a share
    np.testing.assert_array_equal(before > 0, box(seen))
    ratio = np.divide(after, before, where=box(seen), out=np.zeros_like(before))
    others = ratio[box(seen) & ~box(key)]
    np.testing.assert_allclose(others, others[0], rtol=1e-5)
    assert (np.abs(ratio[box(key)] / others[0] - 1) > 1e-3).all()


def test_the_picture_over_the_photograph() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = normalize(jnp.asarray(pixels), preprocessing.mean, preprocessing.std)
    config, block, query, _, _, seen = CASES["LSA of stride 4, padded"]
    model = patches_only(config)
    picture = attention_overlay(model, images, query, block=block, head=0, preprocessing=preprocessing, scale=3)
    assert (type(picture), picture.mode, picture.size) == (Image.Image, "RGB", (3 * WIDTH, 3 * HEIGHT))
    drawn = np.asarray(picture)
    gray = 0.7 * pixels[0].mean(axis=-1)
    np.testing.assert_allclose(drawn[1::3, 1::3][~box(seen)], np.repeat(gray[~box(seen), None], 3, 1), atol=0.51)

    heat = attention_heatmap(model, images, query, block=block, head=0)
    most = box(seen) & (heat == heat.max()) & ~box((68, 144, 72, 148))
    assert most.any()
    expected = 0.3 * gray[most, None] + 0.7 * np.array(MOST)
    of_most = drawn[1::3, 1::3][most].reshape(4, 4, 3)[1:3, 1:3]  # within the lines between keys
    np.testing.assert_allclose(of_most, expected.reshape(4, 4, 3)[1:3, 1:3], atol=0.51)

    def outlined(color: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = np.nonzero((drawn == color).all(axis=-1))
        return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1

    assert outlined(CYAN) == (3 * 68, 3 * 144, 3 * 72, 3 * 148)
    assert outlined(WHITE) == (3 * 56, 3 * 140, 3 * 72, 3 * 148)


def test_a_classifiers_picture_has_its_own_preprocessing() -> None:
    model = classifier(SVT)
    images = normalize(jnp.full((1, HEIGHT, WIDTH, 3), 100, jnp.uint8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    model.preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert attention_overlay(model, images, [0, 0], block=0, scale=1).getpixel((WIDTH - 1, HEIGHT - 1)) == (70, 70, 70)
    model.preprocessing = None
    expected = round(0.7 * 255 * (100 / 255 * IMAGENET_STD + IMAGENET_MEAN).mean())
    picture = attention_overlay(model, images, [0, 0], block=0, scale=1)
    assert picture.getpixel((WIDTH - 1, HEIGHT - 1)) == (expected,) * 3


def test_heads() -> None:
    of_heads = [attention_heatmap(MODEL, ONE, (8, 8), block=2, head=head) for head in (0, 1)]
    assert np.abs(of_heads[0] - of_heads[1]).max() > 1e-4
    mean = attention_heatmap(MODEL, ONE, (8, 8), block=-3)
    np.testing.assert_allclose(mean, (of_heads[0] + of_heads[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nnx.Linear(2, 3, rngs=nnx.Rngs(0))}, "model=.*must be a TwinsClassifier, a TwinsSegmenter, a"),
        ({"images": ONE[0]}, r"images.shape=.*with a batch axis"),
        ({"images": np.repeat(ONE, 2, 0)}, r"images.shape=\(2, 75, 149, 3\): must be of a single image: images\[:1\]"),
        ({"images": np.full_like(ONE, np.nan)}, "images: no finite attention"),
        ({"query": (72, 0)}, r"query=\(72, 0\): must be row and column of a pixel, less than 64 and 128 at stride 32"),
        ({"query": (0, 148)}, "query"),
        ({"query": (-1, 0)}, "query"),
        ({"query": (1.5, 0)}, "query"),
        ({"query": 5}, "query"),
        ({"query": (1, 2, 3)}, "query"),
        ({"block": 5}, "block=5: must be an index from -5 to 4"),
        ({"block": (0,)}, "block"),
        ({"head": 1, "block": 0}, "head=1: must be None, for the mean, or an index from -1 to 0"),
        ({"head": "all"}, "head"),
        ({"scale": 0}, "scale=0: must be an integer from 1 to 64"),
        ({"preprocessing": "timm"}, "preprocessing='timm'"),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"model": MODEL, "images": ONE, "query": (0, 0), **options}
    with pytest.raises(InputError, match=message):
        attention_overlay(arguments.pop("model"), arguments.pop("images"), arguments.pop("query"), **arguments)


def test_only_colors_are_drawn() -> None:
    config = dataclasses.replace(SVT, in_channels=1)
    model = nnx.eval_shape(lambda: twins_jax.TwinsBackbone(config, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"images.shape=.*of colors"):
        attention_overlay(model, ONE[..., :1], (0, 0))


def test_no_images_have_no_maps() -> None:
    for block, keys in ((0, (7, 7)), (1, (2, 4))):
        found = jax.eval_shape(lambda images, block=block: attention_maps(MODEL, images, block), ONE[:0])
        assert found.shape == (0, 1, 18, 37, *keys)


def test_maps_within_a_users_jit() -> None:
    apply, params = twins_jax.split_model(MODEL, lambda model, images, **_: attention_maps(model, images, 0))
    np.testing.assert_allclose(jax.jit(apply)(params, ONE), attention_maps(MODEL, ONE, 0), rtol=1e-5)
