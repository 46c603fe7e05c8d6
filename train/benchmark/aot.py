"""Compiles a recipe's training step for TPU without a TPU: memory, arithmetic and traffic of each chip.

`python -m train.benchmark.aot [RECIPE] [--topology v5e:2x2] [--field value ...]` takes the fields of
`python -m train.main` and compiles the program that it would run on the chips. Exit code 0 if the program fits into
their memory, 1 if it does not, and 2 for a program that cannot be compiled.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from importlib import metadata, util
from typing import Annotated, Any

import jax
from flax import nnx

from twins_jax import TwinsClassifier, get_batch_stats, get_params
from twins_jax.ending import command_line
from twins_jax.errors import MAX_INT, InputError, one_line, require
from twins_jax.extra import check_installed
from twins_jax.sharding import make_mesh

from ..config import RunConfig
from ..experiment import check_batch_size, lower_train_step
from ..extra import TRAINING
from ..flops import TRAINING_FACTOR, loss_flops
from ..main import parse_recipe
from ..optim import make_optimizer, make_schedule
from ..recipes.imagenet import EVAL_EXAMPLES, TRAIN_EXAMPLES
from ..state import abstract_state
from ..step import make_train_step
from ..task import DatasetInfo
from . import layer_bytes
from .collectives import Traffic, read_traffic
from .results import check_out, write_figures
from .tpu import Chip, topology_devices

EXIT_DOES_NOT_FIT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The program to compile, and the chips to compile it for."""

    train: RunConfig

    topology: str = "v5e:2x2"
    """Generation and shape of the slice: v5e:4x4, v5p:2x2x4, v6e:16x16."""

    classes: int | None = None
    """Outputs of the model; by default those of the data set, which must exist unless it is imagenet2012."""

    by_layer: bool = False
    """Print the bytes of HBM by part of the model, beside the fewest that it needs; of classifiers."""

    out: str | None = None
    """File for the figures as JSON."""

    def __post_init__(self) -> None:
        is_count = self.classes is None or 1 <= self.classes <= MAX_INT
        require("classes", self.classes, is_count, f"None or an integer from 1 to {MAX_INT}")


@dataclasses.dataclass(frozen=True)
class Report:
    """The needs of one training step on one chip.

    Attributes:
        model: variant.
        topology: of the slice.
        chip: its kind.
        mesh: devices along each axis.
        images: of the batch that the chip works on.
        compile_seconds: of tracing and compiling.
        verdict: "fits", or the compiler's words.
        memory: bytes of the chip's HBM: "arguments" (state and batch), "outputs" (state and metrics), "aliased"
            (outputs in the place of arguments), "temporaries", "code", and the "peak". Empty where it does not fit.
        flops: operations, as the compiler counts them; None where it does not, or does not fit.
        model_flops: operations that the model needs: three forward passes.
        bytes_accessed: of HBM and on-chip memory, as the compiler counts them.
        traffic: the collectives; None where the program does not fit.
        layers: bytes of HBM by part of the model; empty unless asked for.
    """

    model: str
    topology: str
    chip: Chip
    mesh: dict[str, int]
    images: int
    compile_seconds: float
    verdict: str
    model_flops: float
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    flops: float | None = None
    bytes_accessed: float | None = None
    traffic: Traffic | None = None
    layers: dict[str, layer_bytes.LayerBytes] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """True if the program fits into the chip's memory."""
        return self.verdict == "fits"

    def seconds(self) -> dict[str, float]:
        """The time of a step's arithmetic, memory and traffic, each alone at the chip's peak rate.

        "compute" is of the compiler's FLOPs or of the model's, whichever are more. "interconnect" is a lower bound.
        "hbm" is none: some of the bytes stay on the chip.
        """
        if self.traffic is None:
            return {}
        return {
            "compute": max(self.flops or 0.0, self.model_flops) / self.chip.peak_flops,
            "hbm": (self.bytes_accessed or 0.0) / self.chip.hbm_bandwidth,
            "interconnect": self.traffic.total.sent_bytes / self.chip.ici_bandwidth,
        }


def compile_step(config: RunConfig, topology: str, classes: int | None = None, *, by_layer: bool = False) -> Report:
    """Compiles the training step of a run on the chips of `topology`.

    Args:
        config: the run's. Weights of `init` are not read.
        topology: as `train.benchmark.tpu.topology_devices` takes it.
        classes: outputs of the model; None: those of the data set.
        by_layer: also count the bytes of HBM by part of the model.

    Raises:
        InputError: a setting or the topology is not what it must be, or the data set is needed and missing.
    """
    chip, devices = topology_devices(topology)
    mesh = make_mesh(config.fsdp, devices)
    check_batch_size(config, mesh)
    attention = config.model["attention_implementation"]
    require("model.attention_implementation", attention, attention in ("auto", "xla"), "auto or xla, for TPUs")
    require("classes", classes, classes is None or classes >= 1, "an integer from 1")
    task = dataclasses.replace(config, init="").make_task(_describe_data(config, classes))
    model = nnx.eval_shape(lambda: task.create_model(nnx.Rngs(config.seed)))
    classifier = model if isinstance(model, TwinsClassifier) else None
    needed = "False, but for classifiers: the floor is known for no other model"
    require("by_layer", by_layer, not by_layer or classifier is not None, needed)
    graphdef, params, batch_stats = nnx.graphdef(model), get_params(model), get_batch_stats(model)
    optimizer = make_optimizer(config, make_schedule(config, task.info.train_examples))
    state = abstract_state(params, batch_stats, optimizer, mesh, ema=config.optim.ema_decay > 0)
    step = make_train_step(task, graphdef, optimizer, config)
    images = config.batch_size // mesh.size
    model_flops = TRAINING_FACTOR * images * loss_flops(task, graphdef, params, batch_stats)
    start = time.perf_counter()
    lowered = lower_train_step(step, state, task, config, mesh)
    try:
        compiled, verdict = lowered.compile(), "fits"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise InputError(f"topology={topology!r}: the compiler fails: {one_line(error)}") from error
        compiled, verdict = None, one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
    report = Report(
        config.model["name"],
        topology,
        chip,
        dict(mesh.shape),
        images,
        time.perf_counter() - start,
        verdict,
        model_flops,
    )
    if compiled is None:
        return report
    text = compiled.as_text()
    assert text is not None, "some backends leave it out, TPU's does not"
    report = _with_figures(report, compiled, text, config.optim.accumulate)
    if not by_layer or classifier is None:
        return report
    _, height, width, _ = task.batch_shapes(config.batch_size)["image"].shape
    layers = layer_bytes.read_layer_bytes(text)
    floors = layer_bytes.with_floors(layers, classifier.config, classifier.num_classes, images, height, width)
    return dataclasses.replace(report, layers=floors)


def _with_figures(report: Report, compiled: jax.stages.Compiled, text: str, parts: int) -> Report:
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
    assert stats is not None, "as the text"
    assert cost is not None
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
    }
    # The compiler counts the body of a loop once; the loop over the parts of a batch holds all but the optimizer.
    flops, bytes_accessed = (parts * cost[name] for name in ("flops", "bytes accessed"))
    return dataclasses.replace(
        report,
        memory=memory,
        flops=flops if flops > 0 else None,
        bytes_accessed=bytes_accessed,
        traffic=read_traffic(text),
    )


def _describe_data(config: RunConfig, classes: int | None) -> DatasetInfo | None:
    """Describes the data set, for given classes and for ImageNet-1K, without its files; None: read them."""
    if classes is None and config.data.source.partition(":")[0] != "imagenet2012":
        return None
    names = tuple(map(str, range(classes or 1000)))
    return DatasetInfo(len(names), names, TRAIN_EXAMPLES, EVAL_EXAMPLES)


def _table(report: Report) -> str:
    chip, seconds = report.chip, report.seconds()
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    lines = [
        f"{report.model}, {report.images} images a chip, on {report.topology} ({mesh}); "
        f"compiled in {report.compile_seconds:.0f} s",
        f"{'fits' if report.fits else 'does not fit'}: " + _memory(report),
    ]
    if report.traffic is None:
        return "\n".join(lines)
    counted = f"{report.flops / 1e9:.0f}" if report.flops else "not counted"
    lines += [
        f"GFLOPs a chip: {counted} (three forward passes: {report.model_flops / 1e9:.0f})",
        f"{'collectives':20} {'count':>6} {'payload MB':>11} {'sent MB':>9}",
    ]
    for kind, found in (*report.traffic.kinds.items(), ("total", report.traffic.total)):
        lines.append(f"{kind:20} {found.count:6} {found.payload_bytes / 1e6:11.1f} {found.sent_bytes / 1e6:9.1f}")
    if report.traffic.in_open_loops:
        lines.append(f"{report.traffic.in_open_loops} of them in loops of unknown length, counted once")
    times = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items())
    ratio = seconds["interconnect"] / seconds["compute"]
    lines.append(f"ms a step at the peak rates of {chip.name}: {times}; interconnect : compute {ratio:.3f}")
    if report.layers:
        lines += _layer_lines(report)
    return "\n".join(lines)


def _layer_lines(report: Report) -> list[str]:
    moved = layer_bytes.total(report.layers.values()).total
    return [
        *layer_bytes.table(report.layers),
        f"HBM by these counts: {1e3 * moved / report.chip.hbm_bandwidth:.2f} ms at the peak rate; "
        f"by the compiler's, which include on-chip memory: {(report.bytes_accessed or 0) / 1e9:.3f} GB",
    ]


def _memory(report: Report) -> str:
    hbm = f"{report.chip.hbm_bytes / 2**30:.0f} GiB"
    if not report.memory:
        return f"{report.verdict} (HBM {hbm})"
    kinds = ", ".join(f"{kind} {value / 2**20:.0f}" for kind, value in report.memory.items())
    return f"MiB a chip of {hbm}: {kinds}"


def _figures(report: Report, config: RunConfig, arguments: Sequence[str]) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("jax", "flax", "libtpu") if util.find_spec(name)}
    about = {"command": ["python", "-m", f"{__package__}.aot", *arguments], "versions": versions}
    figures = dataclasses.asdict(report) | {"fits": report.fits, "seconds": report.seconds()}
    return about | figures | {"config": dataclasses.asdict(config)}


def _arguments(config: RunConfig) -> Arguments:
    """The arguments before any flag, of a type that has the flags of this config's type."""
    import tyro  # late: `parse_recipe` says if it is not installed

    train = ("train", Annotated[type(config), tyro.conf.arg(name="")])
    of_task = dataclasses.make_dataclass("Arguments", [train], bases=(Arguments,), frozen=True, kw_only=True)
    arguments: Arguments = of_task(train=config)
    return arguments


@command_line
def main(arguments: Sequence[str]) -> int:
    """Compiles, prints a table, writes JSON if asked, and returns the exit code: 0, 1 or 2."""
    jax.config.update("jax_platforms", "cpu")  # the program is compiled only, even on a machine with chips
    args = parse_recipe(arguments, f"{__package__}.aot", _arguments)
    check_installed(*TRAINING, purpose="compiling", extra="train")
    out = None if args.out is None else check_out(args.out)
    report = compile_step(args.train, args.topology, args.classes, by_layer=args.by_layer)
    print(_table(report))
    if out:
        write_figures(out, _figures(report, args.train, arguments))
    return 0 if report.fits else EXIT_DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
