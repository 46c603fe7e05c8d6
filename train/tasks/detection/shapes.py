"""The static shapes of detection: one of all batches of training, a few of those of evaluation."""

import numpy as np

from twins_jax.detection.preprocess import DetectionPreprocessing

from ...data.planned import PlannedBatch
from .config import DetectionDataConfig

Size = tuple[int, int]


def training_shape(sizes: np.ndarray, data: DetectionDataConfig) -> Size:
    """Returns the height and width of the batches of training, multiples of the divisor.

    The training step is compiled for one shape. One that holds all images of both orientations whole would be a square
    of `longer`, 1.7 times the pixels of COCO's landscapes. The shape is therefore the smallest that holds the resized
    images of the orientation that most images have, squares included, and an image of the other orientation is shrunk
    until it fits (`fitted_size`). Data sets of one orientation are resized as in the reference. Of COCO 2017 the shape
    is 800 x 1344: a portrait of 480 x 640 pixels becomes 600 x 800, where mmdet, whose batches hold one orientation
    each, makes it 800 x 1067.

    With `multi_scale` the shape is the largest of that orientation: crops have aspect ratios of their own.

    Args:
        sizes: int [N, 2], height and width of each image.
        data: the settings.
    """
    preprocessing = DetectionPreprocessing(data.shorter, data.longer)
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    is_landscape, is_portrait = found[:, 1] > found[:, 0], found[:, 0] > found[:, 1]
    is_other = is_portrait if counts[is_landscape].sum() >= counts[is_portrait].sum() else is_landscape
    if data.multi_scale:
        held = np.array([(data.shorter, data.longer)])
        held = held if is_other is is_portrait else held[:, ::-1]
    else:
        held = np.array([preprocessing.size(*size) for size in found[~is_other].tolist()])
    height, width = (-(-held.max(axis=0) // preprocessing.divisor) * preprocessing.divisor).tolist()
    return height, width


def fitted_size(size: Size, preprocessing: DetectionPreprocessing, shape: Size) -> Size:
    """Returns the height and width of a resized image: those of the preprocessing, or less to fit into the shape.

    Args:
        size: of the image.
        preprocessing: of the model.
        shape: of the batch.
    """
    height, width = preprocessing.size(*size)
    if height <= shape[0] and width <= shape[1]:
        return height, width
    factor = min(room / side for room, side in zip(shape, size, strict=True))
    height, width = (max(1, min(int(side * factor + 0.5), room)) for room, side in zip(shape, size, strict=True))
    return height, width


def plan_batches(sizes: np.ndarray, data: DetectionDataConfig, batch_size: int) -> list[PlannedBatch]:
    """Groups images of evaluation by the shape of the network's input, and plans their batches.

    A program is compiled for each of the shapes, `DetectionPreprocessing.padded_shapes`.

    Args:
        sizes: int [N, 2], height and width of each image.
        data: the settings.
        batch_size: rows of a batch, over all processes.
    """
    preprocessing = DetectionPreprocessing(data.shorter, data.longer)
    groups: dict[Size, list[int]] = {}
    for number, size in enumerate(sizes.tolist()):
        groups.setdefault(preprocessing.padded_shape(*preprocessing.size(*size)), []).append(number)
    return [
        PlannedBatch(members[start : start + batch_size], {"image": (*shape, 3)})
        for shape, members in groups.items()
        for start in range(0, len(members), batch_size)
    ]
