"""Pictures of what a model computes: where a query of LSA or GSA looks, the class of each pixel, objects."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from flax import nnx

from twins_jax.attention import LocallyGroupedAttention
from twins_jax.backbone import Block, TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.errors import InputError, is_integer, is_number, require
from twins_jax.functional import Params, get_params, merge_model
from twins_jax.inputs import check_images
from twins_jax.model import Model, check_model
from twins_jax.preprocess import DEFAULT, Picture, Preprocessing, read
from twins_jax.segmentation.preprocess import resize_nearest

if TYPE_CHECKING:
    from PIL import Image

LEAST, MOST = (255, 0, 0), (255, 235, 40)
"""RGB of little and of the most attention."""

CYAN, WHITE, THIN = (0, 255, 255), (255, 255, 255), (255, 255, 255, 50)
"""RGB or RGBA of the outlines of the query, of all keys and of each key."""


def attention_maps(model: Model, images: jax.Array, block: int = -1) -> jax.Array:
    """Computes the attention weights of a block: softmax(q k^T / sqrt(d)), from the model's own queries and keys.

    Args:
        model: a classifier or a backbone.
        images: normalized floats [B, H, W, in_channels], H and W at least 32.
        block: index over the blocks of all stages; negative ones count from the end.

    Returns:
        The weights of each position of the block's map [B, H', W', C] over its keys, float32 or wider, of sum 1 over
        the last two axes. Of a GSA block [B, heads, H', W', h, w]: key (i, j) is the representative of the `ratio` x
        `ratio` square of positions with the corner (i * ratio, j * ratio). Of an LSA block [B, heads, H', W', size,
        size]: key (i, j) of a position (y, x) is the one at (y // size * size + i, x // size * size + j), which is
        padding if it is outside of the map. The weights of a GSA block grow with the square of the image's area.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    backbone = _backbone(model)
    index = _block_index(backbone, block)
    images = check_images(images, backbone.config.in_channels)
    return _attention_maps(nnx.graphdef(backbone), get_params(backbone), images, index)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _attention_maps(graphdef: nnx.GraphDef[Any], params: Params, images: jax.Array, index: int) -> jax.Array:
    seen: list[tuple[Block, jax.Array]] = []
    backbone: TwinsBackbone = merge_model(graphdef, params)
    backbone.observe_blocks(images, lambda *block_and_maps: seen.append(block_and_maps[:2]), last=index)
    block, x = seen[index]
    return block.attn.weights(block.norm1(x))


def attention_heatmap(
    model: Model, images: jax.Array, query: Sequence[int], *, block: int = -1, head: int | None = None
) -> np.ndarray:
    """Spreads the attention weights of one query over the pixels that its keys stand for.

    A position of a map stands for the square of pixels that patch embeddings cut out for it.

    Args:
        model: a classifier or a backbone.
        images: a single image, normalized floats [1, H, W, in_channels].
        query: row and column of a pixel; the position that it belongs to is the query.
        block: as in `attention_maps`.
        head: index of a head; None: the mean over all heads.

    Returns:
        float32 [H, W]: the weight of a pixel's key over the pixels of that key. The sum is 1, less the weights of
        padding. Pixels without a key have 0.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    images = _single(model, images)
    return _look(model, images, query, block, head).heat(*images.shape[1:3])


def attention_overlay(
    model: Model,
    images: jax.Array,
    query: Sequence[int],
    *,
    block: int = -1,
    head: int | None = None,
    preprocessing: Preprocessing | None = None,
    scale: int = 2,
) -> "Image.Image":
    """Draws where a query looks, over the photograph as the model sees it.

    The photograph is gray and darkened. The attention of a pixel, relative to the largest, is its color, from red to
    yellow. The query's patch has a cyan outline; thin lines separate the pixels of the keys, and a white outline
    surrounds all of them: LSA's window, or GSA's squares. Random weights attend to everything alike.

    Args:
        model: a classifier or a backbone.
        images: a single image [1, H, W, 3], normalized, as `preprocess` returns it.
        query: as in `attention_heatmap`.
        block: as in `attention_maps`.
        head: as in `attention_heatmap`.
        preprocessing: with which the image was normalized; None: the model's, and without it `DEFAULT`.
        scale: pixels of the picture for each of the image, both ways.

    Returns:
        A PIL image in RGB, of `scale` H x `scale` W pixels.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    require("scale", scale, is_integer(scale, 1, 64), "an integer from 1 to 64")
    if preprocessing is None:
        preprocessing = (isinstance(model, TwinsClassifier) and model.preprocessing) or DEFAULT
    require("preprocessing", preprocessing, isinstance(preprocessing, Preprocessing), "None or a Preprocessing")
    images = _single(model, images)
    is_rgb = images.shape[-1] == len(preprocessing.mean) == 3
    require("images.shape", images.shape, is_rgb, "[1, H, W, 3], of colors")
    look = _look(model, images, query, block, head)
    from PIL import Image, ImageDraw  # late: `import twins_jax` does not wait for it

    mean, std, least, most = (np.array(rgb, np.float32) for rgb in (preprocessing.mean, preprocessing.std, LEAST, MOST))
    photograph = (np.asarray(images, np.float32)[0] * std + mean).clip(0, 1)
    gray = 0.7 * 255 * photograph.mean(axis=-1, keepdims=True)
    heat = look.heat(*images.shape[1:3])[:, :, None]
    share = heat / (heat.max() or 1.0)  # all the weight may be on padding
    blended = gray + 0.7 * share * (least + share * (most - least) - gray)
    picture = Image.fromarray(blended.round().astype(np.uint8))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")

    def outline(box: Box, color: tuple[int, ...], width: int = 1) -> None:
        top, left, bottom, right = (scale * side for side in box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)

    for key in look.keys.values():
        outline(key, THIN)
    outline(look.seen, WHITE, 2)
    outline(look.query, CYAN, 2)
    return picture


def segmentation_overlay(picture: Picture, labels: np.ndarray, *, opacity: float = 0.55) -> "Image.Image":
    """Lays a color for each class over an image: that of `twins_jax.segmentation.palette.PALETTE`.

    Args:
        picture: as `segment` takes it.
        labels: integers [H, W] from 0, as `segment` returns them, or of a mask: 255 is gray in uint8. Those of another
            size than the image are stretched to it.
        opacity: of the colors, from 0 to 1.

    Returns:
        A PIL image in RGB, of the image's size.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    labels = np.asarray(labels)
    is_map = labels.ndim == 2 and labels.size > 0 and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0
    require("labels", f"{labels.dtype}{list(labels.shape)}", is_map, "integers [H, W] from 0")
    require("opacity", opacity, is_number(opacity) and 0 <= opacity <= 1, "a number from 0 to 1")
    image = read(picture)
    from PIL import Image  # late: `import twins_jax` does not wait for it

    from twins_jax.segmentation.palette import overlay  # late: it computes its colors

    height, width = image.shape[:2]
    return Image.fromarray(overlay(image, resize_nearest(labels, (height, width)), opacity))


def detection_overlay(
    picture: Picture,
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: np.ndarray | Sequence[int],
    *,
    scores: np.ndarray | Sequence[float] | None = None,
    masks: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> "Image.Image":
    """Draws objects over an image: their boxes, masks, classes and scores.

    A class has the color that it has in `segmentation_overlay`. What is drawn over what follows the scores: the highest
    is on top, and without scores the first. A caption that finds no place beside those before it is left out.

    Args:
        picture: as `detect` takes it.
        boxes: [N, 4], each x1, y1, x2, y2 in pixels of the image. Of a box that reaches beyond the image the part
            within it is drawn.
        labels: integers [N] from 0.
        scores: [N], from 0 to 1; None: none are written.
        masks: bool [N, H, W], of the image's size; None: boxes alone.
        class_names: of the labels, from 0; None: none are written.

    Returns:
        A PIL image in RGB, of the image's size.

    Raises:
        InputError: (a ValueError) naming what is wrong with an argument.
    """
    image = read(picture)
    corners, classes = np.asarray(boxes, np.float64), np.asarray(labels)
    if corners.size == 0 and classes.size == 0:  # an empty list has neither axes nor integers
        corners, classes = np.zeros((0, 4)), np.zeros(0, np.int64)
    count = len(corners) if corners.ndim else 0

    def require_array(field: str, array: np.ndarray, ok: bool, allowed: str) -> None:
        require(field, f"{array.dtype}{list(array.shape)}", ok, allowed)

    are_boxes = corners.shape == (count, 4) and np.isfinite(corners).all() and (corners[:, :2] <= corners[:, 2:]).all()
    require_array("boxes", corners, bool(are_boxes), "[N, 4], finite, x1 <= x2 and y1 <= y2")
    are_labels = classes.shape == (count,) and np.issubdtype(classes.dtype, np.integer) and (classes >= 0).all()
    require_array("labels", classes, bool(are_labels), f"integers [{count}] from 0, one for each box")
    classes = classes.astype(np.int64)  # no label of 8 bits is gray, as that of ignored pixels is
    if scores is not None:
        scores = np.asarray(scores, np.float64)
        are_scores = scores.shape == (count,) and ((scores >= 0) & (scores <= 1)).all()
        require_array("scores", scores, bool(are_scores), f"[{count}] from 0 to 1, one for each box")
    if masks is not None:
        masks = np.asarray(masks)
        shape = (count, *image.shape[:2])
        are_masks = masks.shape == shape and masks.dtype == bool
        require_array("masks", masks, are_masks, f"bool {list(shape)}, one of the image's size for each box")
    if class_names is not None:
        least = int(classes.max(initial=-1)) + 1
        are_names = isinstance(class_names, list | tuple) and all(isinstance(name, str) for name in class_names)
        require("class_names", class_names, are_names and len(class_names) >= least, f"None or {least} strings or more")
    from twins_jax.detection.overlay import overlay_objects  # late: its palette is computed

    return overlay_objects(image, corners, classes, scores, masks, class_names)


Box: TypeAlias = tuple[int, int, int, int]
"""Top, left, bottom and right of a rectangle of pixels; the last two are the first ones outside of it."""


@dataclasses.dataclass(frozen=True)
class _Look:
    """The keys at which one query looks.

    Attributes:
        weights: float32 [h, w], over the keys.
        query: the pixels of the query's position.
        seen: the pixels of all keys, without padding.
        side: of a key, in pixels.
    """

    weights: np.ndarray
    query: Box
    seen: Box
    side: int

    @property
    def keys(self) -> dict[tuple[int, int], Box]:
        """The pixels of each key by its index, without padding."""
        top, left, bottom, right = self.seen
        return {
            (i, j): (y, x, y + self.side, x + self.side)
            for i, y in enumerate(range(top, bottom, self.side))
            for j, x in enumerate(range(left, right, self.side))
        }

    def heat(self, height: int, width: int) -> np.ndarray:
        """The weights spread over the pixels of an image: float32 [height, width]."""
        heat = np.zeros((height, width), np.float32)
        for index, (top, left, bottom, right) in self.keys.items():
            heat[top:bottom, left:right] = self.weights[index] / self.side**2
        return heat


def _look(model: Model, images: jax.Array, query: Sequence[int], block: int, head: int | None) -> _Look:
    backbone = _backbone(model)
    index = _block_index(backbone, block)
    stage, info = next((i, info) for i, info in enumerate(backbone.feature_info) if index <= info.last_block)
    attention = backbone.stages[stage].blocks[index - info.last_block - 1].attn
    heads, stride = attention.num_heads, info.stride
    allowed = f"None, for the mean, or an index from {-heads} to {heads - 1}"
    require("head", head, head is None or is_integer(head, -heads, heads - 1), allowed)
    bottom, right = (side // stride * stride for side in images.shape[1:3])  # of the pixels that have a position
    is_pair = isinstance(query, Sequence) and len(query) == 2
    is_pixel = is_pair and is_integer(query[0], 0, bottom - 1) and is_integer(query[1], 0, right - 1)
    require("query", query, is_pixel, f"row and column of a pixel, less than {bottom} and {right} at stride {stride}")
    y, x = (int(at) // stride for at in query)

    of_heads = np.asarray(attention_maps(backbone, images, index), np.float32)[0, :, y, x]
    weights = of_heads.mean(axis=0) if head is None else of_heads[head]
    if not np.isfinite(weights).all():
        raise InputError("images: no finite attention: must be finite, as the model's parameters")
    if isinstance(attention, LocallyGroupedAttention):
        window = attention.window_size * stride
        top, left = y * stride // window * window, x * stride // window * window
        seen, side = (top, left, min(top + window, bottom), min(left + window, right)), stride
    else:
        side = attention.ratio * stride
        seen = (0, 0, bottom // side * side, right // side * side)
    patch = (y * stride, x * stride, (y + 1) * stride, (x + 1) * stride)
    return _Look(weights, patch, seen, side)


def _single(model: Model, images: jax.Array) -> jax.Array:
    images = check_images(images, _backbone(model).config.in_channels)
    require("images.shape", images.shape, images.shape[0] == 1, "of a single image: images[:1]")
    return images


def _backbone(model: Model) -> TwinsBackbone:
    check_model(model)
    return model if isinstance(model, TwinsBackbone) else model.backbone


def _block_index(backbone: TwinsBackbone, block: int) -> int:
    total = sum(backbone.config.depths)
    require("block", block, is_integer(block, -total, total - 1), f"an index from {-total} to {total - 1}")
    return int(block) % total
