"""Detectors that compute in bfloat16: nothing that follows the outputs of heads is rounded to its 8 bits.

A coordinate of 800 pixels would be a multiple of 4, and a score or an IoU near 1 a multiple of 1/256.
"""

import collections
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from train.tasks.detection.losses import (
    RoIs,
    Truth,
    box_head_losses,
    mask_loss,
    retinanet_losses,
    rpn_losses,
    sample_rois,
)
from twins_jax.detection.anchors import RETINANET_ANCHORS, RPN_ANCHORS, Anchors
from twins_jax.detection.boxes import RPN_STDS, decode_boxes
from twins_jax.detection.retinanet import dense_detections
from twins_jax.detection.roi_heads import mask_probabilities, region_detections
from twins_jax.detection.rpn import proposals

IMAGES, HEIGHT, WIDTH, CLASSES, OBJECTS, BOXES, GROUP = 2, 64, 832, 3, 4, 16, 2

EXACT = {
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "slice", "concatenate", "pad", "gather", "split"),
    *("stop_gradient", "top_k", "sort", "max", "reduce_max", "select_n"),
}
"""Operations that move or compare values."""


def rounding(jaxpr: Any) -> Iterator[str]:
    """The operations of a program, inner ones too, whose results are rounded to bfloat16."""
    for equation in jaxpr.eqns:
        inner = [*jaxprs_in_params(equation.params)]
        for each in inner:
            yield from rounding(each)
        if not inner and equation.primitive.name not in EXACT:
            yield from (equation.primitive.name for out in equation.outvars if out.aval.dtype == jnp.bfloat16)


def shape(*sides: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((IMAGES, *sides), dtype)


def levels(anchors: Anchors, channels: int) -> list[tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]]:
    """The outputs of a dense head."""
    maps = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in anchors.strides]
    return [(shape(*each, anchors.per_cell * channels), shape(*each, anchors.per_cell * 4)) for each in maps]


OUTPUTS = {
    "retinanet": levels(RETINANET_ANCHORS, CLASSES),
    "rpn": levels(RPN_ANCHORS, 1),
    "box_head": (shape(BOXES, CLASSES + 1), shape(BOXES, 4 * CLASSES)),
    "mask_head": shape(BOXES, 28, 28, CLASSES),
}
ROIS = RoIs(
    boxes=shape(BOXES, 4, dtype=jnp.float32),
    assigned=shape(BOXES, dtype=jnp.int32),
    valid=shape(BOXES, dtype=jnp.bool_),
)
TRUTH = Truth(
    boxes=shape(OBJECTS, 4, dtype=jnp.float32),
    labels=shape(OBJECTS, dtype=jnp.int32),
    valid=shape(OBJECTS, dtype=jnp.bool_),
    sizes=shape(2, dtype=jnp.int32),
)
TARGETS = shape(BOXES, 28, 28, dtype=jnp.float32)


def answers(outputs: Any, rois: RoIs, truth: Truth) -> Any:
    regions = region_detections(*outputs["box_head"], rois.boxes, rois.valid, truth.sizes)
    found = proposals(outputs["rpn"], truth.sizes, BOXES, BOXES)
    return (
        dense_detections(outputs["retinanet"], truth.sizes),
        found,
        regions,
        mask_probabilities(outputs["mask_head"], truth.labels[:, :1].repeat(BOXES, axis=1)),
        sample_rois(*found, truth, jax.random.key(0), BOXES),
    )


def losses(outputs: Any, rois: RoIs, truth: Truth, targets: jax.Array) -> Any:
    return (
        retinanet_losses(outputs["retinanet"], truth, GROUP),
        rpn_losses(outputs["rpn"], truth, jax.random.key(0), GROUP),
        box_head_losses(*outputs["box_head"], rois, truth, GROUP),
        mask_loss(outputs["mask_head"], targets, rois, truth, GROUP),
    )


def test_answers_are_computed_in_float32() -> None:
    jaxpr, shapes = jax.make_jaxpr(answers, return_shape=True)(OUTPUTS, ROIS, TRUTH)
    assert set(rounding(jaxpr)) == set()
    assert {str(each.dtype) for each in jax.tree.leaves(shapes)} == {"float32", "int32", "bool"}


def test_losses_are_computed_in_float32() -> None:
    """Their gradients are rounded once, where they enter the heads."""
    jaxpr, shapes = jax.make_jaxpr(losses, return_shape=True)(OUTPUTS, ROIS, TRUTH, TARGETS)
    assert set(rounding(jaxpr)) == set()
    assert {str(each.dtype) for each in jax.tree.leaves(shapes)} == {"float32"}
    total = lambda *args: sum(jax.tree.leaves(losses(*args)))  # noqa: E731
    gradient = jax.make_jaxpr(jax.grad(total))(OUTPUTS, ROIS, TRUTH, TARGETS)
    operations = collections.Counter(rounding(gradient))
    # The gradient of masks is scattered by an addition to zeros.
    assert operations == {"convert_element_type": len(jax.tree.leaves(OUTPUTS)), "add": 1}


def test_boxes_are_as_exact_as_float32() -> None:
    """Decoded from deltas of bfloat16, 800 pixels from the corner, against float64."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(740, 800, (200, 2))
    anchors = np.concatenate([corners, corners + rng.uniform(20, 60, (200, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(0, 0.5, (200, 4)).astype(jnp.bfloat16)
    boxes = np.asarray(decode_boxes(jnp.asarray(deltas), anchors, RPN_STDS))

    anchor, delta = anchors.astype(np.float64), deltas.astype(np.float64)
    sides = anchor[:, 2:] - anchor[:, :2]
    center = anchor[:, :2] + sides / 2 + delta[:, :2] * sides
    half = sides * np.exp(delta[:, 2:]) / 2
    expected = np.concatenate([center - half, center + half], axis=1)
    assert np.abs(boxes - expected).max() < 5e-4
    assert np.abs(expected.astype(jnp.bfloat16).astype(np.float64) - expected).max() > 1.5
