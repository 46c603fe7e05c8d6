"""Images of their own aspect ratio, as dense models expect them."""

import dataclasses

from twins_jax.config import MIN_IMAGE_SIZE
from twins_jax.errors import is_integer, require
from twins_jax.preprocess import DEFAULT, check_mean_and_std


@dataclasses.dataclass(frozen=True)
class KeepRatioPreprocessing:
    """The part of an image's way to a dense model that the tasks share.

    The image is resized, keeping its aspect ratio, to the largest size whose shorter side is at most `shorter` and
    whose longer side is at most `longer`; its channels, scaled to [0, 1], get `mean` subtracted and are divided by
    `std`.

    Attributes:
        shorter: side in pixels.
        longer: side in pixels.
        mean: of each channel.
        std: of each channel.

    Raises:
        InputError: (a ValueError) naming the field, its value and what it must be.
    """

    shorter: int
    longer: int
    mean: tuple[float, ...] = DEFAULT.mean
    std: tuple[float, ...] = DEFAULT.std

    def __post_init__(self) -> None:
        allowed = f"an integer from {MIN_IMAGE_SIZE}"
        require("shorter", self.shorter, is_integer(self.shorter, MIN_IMAGE_SIZE), allowed)
        is_longer = is_integer(self.longer, MIN_IMAGE_SIZE) and self.longer >= self.shorter
        require("longer", self.longer, is_longer, f"an integer from shorter, {self.shorter}")
        for field, values in check_mean_and_std(self.mean, self.std).items():
            object.__setattr__(self, field, values)

    def size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Returns the height and width to which an image is resized.

        Args:
            height: of the image.
            width: of the image.
            scale: factor on `shorter` and `longer`, of multi-scale testing and of training's random resizing.
        """
        shorter, longer = int(self.shorter * scale), int(self.longer * scale)
        factor = min(longer / max(height, width), shorter / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
