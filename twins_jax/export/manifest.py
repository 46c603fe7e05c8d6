"""Describes an exported file: inputs and outputs, preprocessing, class names, versions, and the check's outcome."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from twins_jax.classifier import TwinsClassifier
from twins_jax.errors import InputError
from twins_jax.export.comparison import Comparison
from twins_jax.export.program import Exportable, Program
from twins_jax.image_classifier import known_class_names

if TYPE_CHECKING:
    from twins_jax.port.infer import Inferred


def make_manifest(
    program: Program, comparisons: Sequence[Comparison], packages: Sequence[str], **of_format: Any
) -> dict[str, Any]:
    """Describes a file, as an object of JSON: timm's `config.json`, as `port.declared` writes it, and more.

    Args:
        program: of the file.
        comparisons: of its outputs with the model's.
        packages: whose versions matter to the format.
        **of_format: further facts that the format has.
    """
    from twins_jax import __version__
    from twins_jax.port.convert import Declared
    from twins_jax.port.declared import to_json

    model = program.model
    classifier = model if isinstance(model, TwinsClassifier) and model.num_classes else None
    declared = Declared(
        class_names=known_class_names(classifier) if classifier else None,
        preprocessing=program.preprocessing,
        window_padding=model.config.window_padding,
        multi_label=classifier.multi_label if classifier else None,
    )
    manifest = to_json(declared, _inferred(model))
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


def _inferred(model: Exportable) -> "Inferred":
    """The model's description; an architecture of no variant is "custom"."""
    from twins_jax.port.infer import Inferred, of_model

    try:
        return of_model(model)
    except InputError:
        num_classes = model.num_classes if isinstance(model, TwinsClassifier) else None
        return Inferred("custom", model.config.in_channels, num_classes, model.config.stage_norms)
