"""The parts that all models share: saving, and the facts beside the weights that an answer needs."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from flax import nnx

from twins_jax.config import TwinsConfig
from twins_jax.errors import require


class _Normalization(Protocol):
    @property
    def mean(self) -> tuple[float, ...]: ...


Preprocessing = TypeVar("Preprocessing", bound=_Normalization)


class SavedModel(nnx.Module):
    """A model that is saved by a method, as users of timm and Hugging Face expect it."""

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the model; arguments and errors are those of `twins_jax.save_pretrained`."""
        from twins_jax.pretrained import save_pretrained  # late: it imports the models

        model: Any = self
        save_pretrained(model, folder, overwrite=overwrite)


class AnsweringModel(SavedModel, Generic[Preprocessing]):
    """A model of images that tells classes: it knows their names, and how its images are prepared.

    Both are None until they are set, cost nothing in a call, and are saved with the model.

    Attributes:
        preprocessing_type: of `preprocessing`.
        config: of the backbone.
        num_classes: outputs.
    """

    preprocessing_type: ClassVar[type]
    config: TwinsConfig
    num_classes: int

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the outputs; None where the weights came without. Takes a list, too.

        Raises:
            InputError: (a ValueError) where set to anything but None or a string for each of `num_classes`.
        """
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        are_names = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
        is_right = names is None or (are_names and len(names) == self.num_classes)
        require("class_names", names, is_right, f"None or {self.num_classes} strings, one for each of num_classes")
        self._class_names = None if names is None else tuple(names)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing of the images with which the weights were evaluated; None where they came without.

        Raises:
            InputError: (a ValueError) where set to anything but None or a `preprocessing_type`.
        """
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | None) -> None:
        kind = self.preprocessing_type
        is_right = value is None or isinstance(value, kind)
        require("preprocessing", value, is_right, f"None or a twins_jax.{kind.__name__}")
        self._preprocessing = value
