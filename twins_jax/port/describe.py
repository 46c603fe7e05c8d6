"""Describes a checkpoint in a few lines and a table by stage."""

import re
from collections.abc import Mapping

import numpy as np

from twins_jax.errors import shown_list
from twins_jax.port.convert import AnyPreprocessing, Declared, Ported, Weights
from twins_jax.preprocess import Preprocessing

PARTS = ("patch_embed", "peg", "blocks")


def describe(weights: Weights, ported: Ported) -> str:
    """Returns the text that `--inspect` prints: facts about the weights, then parameters by stage.

    Args:
        weights: of any layout.
        ported: the same weights, complete and fitting.
    """
    model, stats = ported.model, ported.model.statistics()
    params = {path: array for path, array in ported.params.items() if path not in stats}
    config = model.config()
    classes = {None: "no classifier", 0: "no head"}.get(model.num_classes, str(model.num_classes))
    declared = weights.declared
    if model.num_classes and declared.class_names:
        shown = ", ".join(map(repr, declared.class_names[:3]))
        classes += f": {shown}{', ...' if model.num_classes > 3 else ''}"
    facts = {
        "variant": model.name + (" with stage norms" if model.stage_norms else ""),
        **({"head": model.kind.noun} if model.head else {}),
        "parameters": f"{_count(params):,}",
        **({"statistics": f"{_count(ported.params) - _count(params):,}"} if stats else {}),
        "classes": classes,
        "channels": str(model.in_channels),
        **_of_images(declared),
        "container": weights.container,
        "names": weights.layout.label,
        "dtype": _dtypes(ported.params),
    }
    facts |= dict(weights.notes)
    if ported.not_ported:
        facts["not ported"] = f"{len(ported.not_ported)} tensors: {shown_list(ported.not_ported)}"
    lines = [f"{key + ':':13}{value}" for key, value in facts.items()]

    parts = "".join(f"{part:>13}" for part in (*PARTS, "total"))
    lines += ["", f"{'':10}{'channels':>9}{'blocks':>8}{parts}  dtype"]
    for stage, (dim, depth) in enumerate(zip(config.embed_dims, config.depths, strict=True)):
        root = f"backbone/stages/{stage}/"
        counts = [_count(_below(params, f"{root}{part}/")) for part in PARTS] + [_count(_below(params, root))]
        cells = "".join(f"{count:>13,}" for count in counts)
        lines.append(f"stage {stage + 1:<4}{dim:>9}{depth:>8}{cells}  {_dtypes(_below(params, root))}")
    rest = {path: array for path, array in params.items() if not re.match(r"backbone/stages/", path)}
    for name in dict.fromkeys(map(_part, rest)):
        found = _below(rest, f"{name}/")
        lines.append(f"{name.removeprefix('backbone/'):66}{_count(found):>13,}  {_dtypes(found)}")
    return "\n".join(lines)


def _part(path: str) -> str:
    """Returns the part of a model outside of its stages that a parameter is counted with: of a head, each module."""
    is_of_head = path.count("/") > 1 and not path.startswith("backbone/")
    return "/".join(path.split("/")[:2]) if is_of_head else path.rpartition("/")[0]


def _of_images(declared: Declared) -> dict[str, str]:
    """Returns the facts that no weights tell, as far as they are declared."""
    facts = {}
    if images := declared.preprocessing:
        facts["images"] = shown_size(images)
        facts["mean, std"] = f"{', '.join(map(str, images.mean))}; {', '.join(map(str, images.std))}"
    if declared.window_padding is not None:
        facts["windows"] = f'window_padding="{declared.window_padding}"'
    return facts


def shown_size(images: AnyPreprocessing) -> str:
    """Returns a preprocessing's sizes for people."""
    if isinstance(images, Preprocessing):
        return f"{images.image_size} x {images.image_size} pixels, center crop {images.crop:g}, {images.interpolation}"
    return f"shorter side {images.shorter} pixels, longer side at most {images.longer}"


def _below(params: Mapping[str, np.ndarray], root: str) -> dict[str, np.ndarray]:
    return {path: array for path, array in params.items() if path.startswith(root)}


def _count(params: Mapping[str, np.ndarray]) -> int:
    return sum(array.size for array in params.values())


def _dtypes(params: Mapping[str, np.ndarray]) -> str:
    return ", ".join(sorted({str(array.dtype) for array in params.values()}))
