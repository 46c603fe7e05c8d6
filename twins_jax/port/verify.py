"""Compares a model here with the same model in PyTorch, number by number."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from twins_jax.backbone import TwinsBackbone
from twins_jax.classifier import TwinsClassifier
from twins_jax.detection.detector import TwinsDetector
from twins_jax.detection.mask_rcnn import TwinsMaskRCNN
from twins_jax.detection.retinanet import TwinsRetinaNet
from twins_jax.errors import InputError
from twins_jax.functional import split_model
from twins_jax.model import Model
from twins_jax.port.convert import Weights, port
from twins_jax.port.infer import Inferred, kind_name
from twins_jax.port.timm_models import torch_model
from twins_jax.port.torch_detectors import proposals

BOUND = 2.0
"""The largest ratio of our rounding error to PyTorch's own that holds."""

FLOOR = 2.0**-24
"""The error of rounding the exact result to float32, below which PyTorch's own is luck."""


class Input(NamedTuple):
    """Sizes of one batch of random images."""

    batch: int
    height: int
    width: int


INPUTS = (Input(1, 224, 224), Input(1, 256, 320), Input(8, 97, 131))
"""Maps that windows tile, maps that they do not, and sizes with remainders in every patch embedding. Ten images: the
largest error of one image's ten logits is within a factor of two in the one and the other only by luck."""


OUTPUTS = {
    "upernet": ("logits", "auxiliary"),
    "semantic_fpn": ("logits",),
    "retinanet": ("P3", "P4", "P5", "P6", "P7", "logits", "deltas"),
    "mask_rcnn": ("P2", "P3", "P4", "P5", "P6", "rpn logits", "rpn deltas", "logits", "deltas", "masks"),
}
"""Outputs after the backbone's, by head: a segmenter's are at stride 4; a detector's are the levels of its pyramid, and
the outputs of its heads, all levels joined. Mask R-CNN's last three are of `proposals`."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Errors of one output in float32 against PyTorch in float64: largest difference over largest value.

    Attributes:
        output: "stage 1" to "stage 4"; then "logits" or "features" of a classifier, or what `OUTPUTS` has of a head.
        pytorch_error: of PyTorch in float32.
        our_error: of the model here in float32.
    """

    output: str
    pytorch_error: float
    our_error: float

    @property
    def ratio(self) -> float:
        """Our error over PyTorch's."""
        return self.our_error / max(self.pytorch_error, FLOOR)

    @property
    def holds(self) -> bool:
        """True if the two agree to within rounding; False if our error is NaN."""
        return self.ratio <= BOUND


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a verification.

    Attributes:
        model: the variant.
        inputs: the batches compared.
        by_input: for each of them, a comparison of every output, in the order of computation.
        top1_agreement: fraction of images, or of a segmenter's positions, a RetinaNet's positions or a Mask R-CNN's
            regions, whose largest logit is the same here and in the float64 truth; None for models without a head.
    """

    model: str
    inputs: tuple[Input, ...]
    by_input: tuple[tuple[Comparison, ...], ...]
    top1_agreement: float | None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The largest errors of every output over all inputs."""
        return tuple(
            Comparison(
                same[0].output,
                float(np.max([comparison.pytorch_error for comparison in same])),
                float(np.max([comparison.our_error for comparison in same])),
            )
            for same in zip(*self.by_input, strict=True)
        )

    @property
    def first_difference(self) -> str | None:
        """The first output that differs by more than rounding."""
        return next((comparison.output for comparison in self.comparisons if not comparison.holds), None)

    @property
    def holds(self) -> bool:
        """True if every output agrees."""
        return self.first_difference is None

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; a NaN error, which JSON cannot hold, is null."""

        def errors(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
            return [
                {
                    "output": comparison.output,
                    "pytorch_error": _finite(comparison.pytorch_error),
                    "our_error": _finite(comparison.our_error),
                    "ratio": _finite(comparison.ratio),
                }
                for comparison in comparisons
            ]

        return {
            "model": self.model,
            "bound": BOUND,
            "holds": self.holds,
            "first_difference": self.first_difference,
            "top1_agreement": self.top1_agreement,
            "outputs": errors(self.comparisons),
            "inputs": [
                {**sizes._asdict(), "outputs": errors(comparisons)}
                for sizes, comparisons in zip(self.inputs, self.by_input, strict=True)
            ],
        }

    def to_text(self) -> str:
        """The report as a table and a verdict."""
        sizes = ", ".join("x".join(map(str, sizes)) for sizes in self.inputs)
        lines = [
            f"verify {self.model}: relative error in float32 against PyTorch in float64, batch x H x W {sizes}",
            f"{'':10}{'PyTorch':>10}{'here':>10}{'ratio':>7}",
        ]
        lines += [
            f"{row.output:10}{row.pytorch_error:>10.1e}{row.our_error:>10.1e}{row.ratio:>7.2g}"
            for row in self.comparisons
        ]
        if self.top1_agreement is not None:
            lines.append(f"top-1 agreement: {self.top1_agreement:.1%}")
        if self.holds:
            lines.append(f"holds: no output is more than {BOUND:g} times PyTorch's own rounding error away")
        else:
            lines.append(f"fails: the two part at {self.first_difference}")
        return "\n".join(lines)


def verify(
    torch_weights: Weights,
    model: Model,
    *,
    name: str | None = None,
    inputs: Sequence[Input] = INPUTS,
) -> Report:
    """Runs timm's model and ours on the same random images.

    The PyTorch side loads its weights by their own names, and an error in the table of names shows. Ours runs under the
    matmul precision "highest"; see "Exactness" in docs/design.md.

    Args:
        torch_weights: of a PyTorch layout.
        model: ours, in float32, with the weights that should be the same. Both sides pad as its `window_padding` says.
        name: the variant of `torch_weights`; read off them where it is None.
        inputs: the batches to compare.

    Raises:
        InputError: timm cannot be imported, one side's weights cannot be used, or the two are different models.
    """
    inferred = port(torch_weights, name).model
    if kind_name(model) != inferred.kind_name:
        raise InputError(
            f"{torch_weights.label}: holds {inferred.kind.noun}, which a {type(model).__name__} cannot be compared with"
        )
    run_torch = torch_model(torch_weights, inferred, model.config.window_padding)
    run_ours = _our_model(model)
    outputs = _outputs(inferred)

    by_input, agreeing = [], []
    rng = np.random.default_rng(0)
    for sizes in inputs:
        shape = (sizes.batch, sizes.height, sizes.width, inferred.in_channels)
        images = rng.standard_normal(shape, dtype=np.float32)
        truth, in_torch, here = run_torch(images, np.float64), run_torch(images, np.float32), run_ours(images)
        by_input.append(
            tuple(
                Comparison(output, _relative_error(torch_value, exact), _relative_error(our_value, exact))
                for output, exact, torch_value, our_value in zip(outputs, truth, in_torch, here, strict=True)
            )
        )
        if "logits" in outputs:
            exact, ours = (values[outputs.index("logits")].argmax(axis=-1) for values in (truth, here))
            agreeing.append((exact == ours).ravel())
    top1_agreement = float(np.mean(np.concatenate(agreeing))) if agreeing else None
    return Report(inferred.name, tuple(inputs), tuple(by_input), top1_agreement)


def _outputs(model: Inferred) -> list[str]:
    """Names a model's outputs in the order of computation."""
    outputs = [f"stage {stage + 1}" for stage in range(4)]
    if model.head is not None:
        outputs += OUTPUTS[model.head]
    elif model.num_classes is not None:
        outputs.append("logits" if model.num_classes else "features")
    return outputs


def _our_model(model: Model) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function of NHWC images that gives our outputs: maps, and then logits or features."""

    def outputs(model: Model, images: jax.Array, *, rngs: nnx.Rngs | None) -> list[jax.Array]:
        if isinstance(model, TwinsBackbone):
            return list(model(images, rngs=rngs))
        maps = model.backbone(images, rngs=rngs)
        if isinstance(model, TwinsClassifier):
            return [*maps, model(images, rngs=rngs)]
        if isinstance(model, TwinsDetector):
            return [*maps, *_detector_outputs(model, model.features(images, rngs=rngs))]
        return [*maps, *(logits for logits in model.training_logits(images, rngs=rngs) if logits is not None)]

    apply, *variables = split_model(model, outputs)
    apply = jax.jit(apply)

    def run(images: np.ndarray) -> list[np.ndarray]:
        with jax.default_matmul_precision("highest"):
            return [np.asarray(output) for output in apply(*variables, jnp.asarray(images))]

    return run


def _detector_outputs(model: TwinsDetector, features: Sequence[jax.Array]) -> list[jax.Array]:
    """Computes a detector's `OUTPUTS`."""

    def joined(levels: Sequence[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        parts = zip(*levels, strict=True)  # logits and deltas
        return [jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in part], axis=1) for part in parts]

    if isinstance(model, TwinsRetinaNet):
        return [*features, *joined(model.heads(features))]
    assert isinstance(model, TwinsMaskRCNN)
    boxes = jnp.asarray(proposals(*features[0].shape[:3]))
    regions = (*model.box_head(features, boxes), model.mask_head(features, boxes))
    return [*features, *joined(model.rpn(features)), *regions]


def _relative_error(values: np.ndarray, truth: np.ndarray) -> float:
    if values.shape != truth.shape:
        raise InputError(f"the two models give outputs of different shapes, {values.shape} and {truth.shape}")
    return float(np.max(np.abs(values - truth)) / np.max(np.abs(truth)))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
