"""The objects that a detector finds in a batch, in the pixels of the images as they are in their files."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from twins_jax.detection.masks import paste_rle
from twins_jax.preprocess import normalize, zero_padding

from ...task import Batch

Outputs = dict[str, Any]


class Found(NamedTuple):
    """The objects found in an image, best first.

    Attributes:
        image: its row in the annotations' list of images.
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the file.
        scores: float32 [N].
        labels: int32 [N].
        masks: of the file's size, in COCO's compressed run-length encoding; None where the detector has none.
    """

    image: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None


def detect(model: Any, batch: Batch) -> Outputs:
    """Finds the objects of a batch; a pure function.

    Args:
        model: a `TwinsRetinaNet` or `TwinsMaskRCNN`.
        batch: {"image": uint8 [B, H, W, 3], "size": int32 [B, 2], height and width before padding, "scale": float32
            [B, 2], the same over those of the file, "original": int32 [B, 2], those of the file, "id": int32 [B],
            "mask": bool [B], False on rows of padding}.

    Returns:
        The fields of `Detections`, "masks" among them only where it has any, and "scale", "original", "id", "mask".
    """
    sizes = jnp.maximum(batch["size"], 1)  # a row of padding has none
    found = model.detect(zero_padding(normalize(batch["image"]), sizes), sizes)
    outputs = {name: value for name, value in found._asdict().items() if value is not None}
    return outputs | {name: batch[name] for name in ("scale", "original", "id", "mask")}


def by_image(outputs: Outputs) -> Iterator[tuple[int, Found]]:
    """Yields the row of each image in its batch, and what was found in it.

    Args:
        outputs: of `detect`, as NumPy arrays.
    """
    for row in np.flatnonzero(outputs["mask"]).tolist():
        valid = outputs["valid"][row]
        boxes = to_original(outputs["boxes"][row][valid], outputs["scale"][row])
        masks = None
        if "masks" in outputs:
            height, width = outputs["original"][row].tolist()
            masks = paste_rle(outputs["masks"][row][valid], boxes, height, width)
        scores, labels = (outputs[name][row][valid] for name in ("scores", "labels"))
        yield row, Found(int(outputs["id"][row]), boxes, scores, labels, masks)


def to_original(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scales boxes, float32 [N, 4], from the network's input to the file.

    Args:
        boxes: in pixels of the network's input.
        scale: float32 [2], the factors of height and width from the file to the input.
    """
    return boxes / np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)
