"""Evaluation batches of images of several sizes: each holds images of one size of the network's input."""

from collections.abc import Sequence

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import MAX_INT, require
from twins_jax.segmentation.preprocess import SegmentationPreprocessing

from ...data.planned import PlannedBatch
from .config import SegmentationDataConfig
from .prediction import image_name

Size = tuple[int, int]


def plan_batches(sizes: Sequence[Size], data: SegmentationDataConfig, batch_size: int) -> list[PlannedBatch]:
    """Groups images by the size of the network's input, padded to `data.eval_multiple`, and plans their batches.

    A program is compiled for each group. Its labels are padded to the largest height and width in the group.

    Args:
        sizes: height and width of each image.
        data: the settings of evaluation.
        batch_size: rows of a batch, over all processes.

    Raises:
        InputError: the pixels of a batch of labels are more than int32 counts.
    """
    groups: dict[tuple[Size, ...], list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(input_sizes(size, data), []).append(number)
    plan = []
    for inputs, members in groups.items():
        height, width = (max(sizes[number][axis] for number in members) for axis in (0, 1))
        fits = batch_size * height * width <= MAX_INT
        require("eval_batch_size", batch_size, fits, f"at most {MAX_INT // (height * width)} for labels of this size")
        shapes = {image_name(number): (*size, 3) for number, size in enumerate(inputs)} | {"label": (height, width)}
        plan += [PlannedBatch(members[i : i + batch_size], shapes) for i in range(0, len(members), batch_size)]
    return plan


def input_sizes(size: Size, data: SegmentationDataConfig) -> tuple[Size, ...]:
    """Returns the padded height and width of an image at each of `data.eval_scales`."""
    preprocessing = SegmentationPreprocessing(data.shorter, data.longer)

    def padded(length: int) -> int:
        return -(-max(length, MIN_IMAGE_SIZE) // data.eval_multiple) * data.eval_multiple

    resized = (preprocessing.size(*size, scale) for scale in data.eval_scales)
    return tuple((padded(height), padded(width)) for height, width in resized)
