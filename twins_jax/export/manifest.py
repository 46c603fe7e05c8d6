"""Describes an exported file: inputs and outputs, preprocessing, class names, versions, and the check's outcome."""

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from twins_jax.classifier import TwinsClassifier
from twins_jax.config import VARIANTS, TwinsConfig, TwinsOptions
from twins_jax.export.comparison import Comparison
from twins_jax.export.program import Program


def make_manifest(
    program: Program, comparisons: Sequence[Comparison], packages: Sequence[str], **of_format: Any
) -> dict[str, Any]:
    """Describes a file, as an object of JSON: timm's `config.json`, as `port.declared` writes it, and more.

    Args:
        program: of the file.
        comparisons: of its outputs with the model's.
        packages: whose versions matter to the format.
        **of_format: what else the format has to say.
    """
    from twins_jax import __version__
    from twins_jax.port.convert import Declared
    from twins_jax.port.declared import to_json
    from twins_jax.port.infer import Inferred

    model, config = program.model, program.model.config
    classifier = model if isinstance(model, TwinsClassifier) else None
    inferred = Inferred(
        name=_variant(config) or "custom",
        in_channels=config.in_channels,
        num_classes=classifier.num_classes if classifier else None,
        stage_norms=config.stage_norms,
    )
    declared = Declared(
        class_names=classifier.class_names if classifier else None,
        preprocessing=program.preprocessing,
        window_padding=config.window_padding,
    )
    manifest = to_json(declared, inferred) or {}
    _, height, width, channels = program.shape
    if preprocessing := manifest.get("pretrained_cfg"):
        preprocessing["input_size"] = [channels, height, width]
    values = "RGB pixels from 0 to 255" if program.normalizes else "pixels / 255, minus mean, divided by std"
    return manifest | {
        "input": {"name": "images", "shape": list(program.shape), "dtype": program.dtype.name, "values": values},
        "outputs": program.outputs(),
        "check": [
            {"output": c.output, "difference": c.difference, "bound": c.bound, "rounding": c.rounding}
            for c in comparisons
        ],
        "versions": {
            "twins_jax": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        **of_format,
    }


def _variant(config: TwinsConfig) -> str | None:
    """The name of an architecture; None for one that is not published."""
    options = {option: getattr(config, option) for option in TwinsOptions.__annotations__}
    return next((name for name, known in VARIANTS.items() if dataclasses.replace(known, **options) == config), None)
