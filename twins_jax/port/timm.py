"""Imports timm, the independent implementation that ours is compared with."""

from typing import Any

from twins_jax.errors import InputError, one_line

_kept_alive: list[Any] = []


def import_timm() -> Any:
    """The module timm, with its Twins models.

    Where torchvision's compiled operators do not load, as those from PyPI beside a CPU-only torch, importing it fails
    for lack of two of their schemas; these are defined here. No operator of torchvision is called.

    Raises:
        InputError: it, or torch, cannot be imported.
    """
    try:
        import torch

        if not hasattr(torch.ops.torchvision, "nms"):
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept_alive.append(library)  # its definitions go when it goes
        import timm.models.twins
    except Exception as error:  # an unfit torchvision makes timm's import fail with RuntimeError
        raise InputError(f"timm, which verifying needs, cannot be imported: {one_line(error)}") from error
    return timm
