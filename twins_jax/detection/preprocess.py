"""Images as detectors expect them: of their own aspect ratio, padded to one of a few shapes."""

import dataclasses

from twins_jax.errors import is_integer, require
from twins_jax.keep_ratio import KeepRatioPreprocessing

STEP = 4
"""Divisors between two lengths of the padded longer side."""


@dataclasses.dataclass(frozen=True)
class DetectionPreprocessing(KeepRatioPreprocessing):
    """The way from an image to the input with which a detector was evaluated.

    See `KeepRatioPreprocessing` for the resizing and the normalization. Zeros are added to the normalized image at the
    right and the bottom, up to one of `padded_shapes`. The defaults are those of upstream's
    `detection/configs/_base_/datasets/coco_detection.py`, `Resize(img_scale=(1333, 800))` and `Pad(size_divisor=32)`.

    The reference pads each image to multiples of `divisor` and no further. One program would then be compiled for each
    of up to 83 shapes. The features that a detector computes depend on the zeros beside the image: results differ
    slightly where a shape differs. They are the reference's own for photographs of 4:3 and 3:2, whose 1067 and 1200
    pixels are padded to 1088 and 1216.

    Attributes:
        divisor: of the padded sides.
    """

    shorter: int = 800
    longer: int = 1333
    divisor: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require("divisor", self.divisor, is_integer(self.divisor, 1, self.longer), f"an integer up to {self.longer}")

    @property
    def padded_shapes(self) -> tuple[tuple[int, int], ...]:
        """The heights and widths of the network's inputs, by area, each landscape before its portrait.

        The short side is `shorter`, rounded up to a multiple of `divisor`; the long one is `longer`, rounded up
        likewise, less a multiple of four times the divisor: 800 by 832, 960, 1088, 1216 or 1344 by default, both ways.
        """
        short, long = (self._round_up(side) for side in (self.shorter, self.longer))
        lengths = [*range(long, short - 1, -STEP * self.divisor)][::-1]
        shapes = ((height, width) for length in lengths for height, width in ((short, length), (length, short)))
        return tuple(dict.fromkeys(shapes))

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns the first of `padded_shapes` that holds an image.

        Args:
            height: of the resized image, as `size` gives it.
            width: of the same.

        Returns:
            Height and width of the network's input.

        Raises:
            InputError: (a ValueError) none holds the image.
        """
        shapes = self.padded_shapes
        fitting = [shape for shape in shapes if shape[0] >= height and shape[1] >= width]
        require("size", (height, width), bool(fitting), f"within one of {shapes}")
        return fitting[0]

    def _round_up(self, side: int) -> int:
        return -(-side // self.divisor) * self.divisor
