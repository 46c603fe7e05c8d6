"""The count of FLOPs and bytes against traced models, the layers' own arrays and the paper; and the command."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import train.benchmark.roofline
import train.flops
import twins_jax
from tests.support.compilation import fast_compilation
from tests.support.models import PCPVT, SVT
from train.benchmark.layer_costs import Operation, Work, count
from train.benchmark.layer_times import Timer, as_function
from twins_jax import TwinsClassifier, TwinsConfig
from twins_jax.config import variant_config
from twins_jax.ops import xla_cpu

# GFLOPs (multiply-adds, as the paper counts) and exact parameters with 1,000 classes.
PUBLISHED = {
    "twins_pcpvt_small": (3.8, 24_106_216),
    "twins_pcpvt_base": (6.7, 43_828_456),
    "twins_pcpvt_large": (9.8, 60_989_672),
    "twins_svt_small": (2.9, 24_060_776),
    "twins_svt_base": (8.6, 56_070_952),
    "twins_svt_large": (15.1, 99_271_400),
}
SIZES = [(224, 224), (230, 311), (32, 47)]
MORE_STAGES = dataclasses.replace(SVT, depths=(1, 3, 2, 1))


def total(operations: list[Operation], key: str, *passes: str) -> int:
    works = [(operation.count, getattr(operation, name)) for operation in operations for name in passes]
    return sum(times * getattr(work, key) for times, work in works)


def products(jaxpr: Any) -> int:
    """FLOPs of the matrix products of a traced program."""
    flops = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            flops += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        for inner in jaxprs_in_params(equation.params):
            flops += products(inner)
    return flops


def nbytes(*trees: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def abstract(config: TwinsConfig, num_classes: int = 10) -> TwinsClassifier:
    return nnx.eval_shape(lambda: TwinsClassifier(config, num_classes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", [PCPVT, SVT, MORE_STAGES], ids=["pcpvt", "svt", "svt deeper"])
def test_products_are_those_of_the_traced_model(
    config: TwinsConfig, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A trace of chunks holds a CPU's computation beside that of other backends.
    monkeypatch.setattr(xla_cpu, "chunk_size", lambda batch, positions: batch)  # noqa: ARG005
    apply, params = twins_jax.split_model(abstract(config))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    operations = [operation for operation in count(config, 10, 2, *size) if operation.part != "PEG"]
    forward = jax.make_jaxpr(apply)(params, images)
    assert total(operations, "flops", "forward") == products(forward.jaxpr)
    gradient = jax.make_jaxpr(jax.grad(lambda params, images: apply(params, images).sum()))(params, images)
    assert total(operations, "flops", "forward", "backward") == products(gradient.jaxpr)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    gflops, parameters = PUBLISHED[name]
    operations = count(variant_config(name), 1000, 1, 224, 224)
    assert total(operations, "flops", "forward") / 2e9 == pytest.approx(gflops, abs=0.05)
    assert sum(operation.count * operation.parameters for operation in operations) == parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(64, 64), (45, 70)], ids=str)
@pytest.mark.parametrize("config", [PCPVT, SVT], ids=["pcpvt", "svt"])
def test_bytes_are_those_of_the_layers_arrays(config: TwinsConfig, size: tuple[int, int], dtype: str) -> None:
    """Every argument is read once and every result written once; backward reads the inputs again."""
    config = dataclasses.replace(config, dtype=jnp.dtype(dtype))
    model = abstract(config)
    *operations, adamw = count(config, 10, 2, *size)
    for operation in operations:
        function, inputs, constants = as_function(model, operation)
        outputs = jax.eval_shape(function, inputs, constants)
        forward, backward = nbytes(inputs, constants, outputs), nbytes(inputs, outputs, inputs)
        if operation.part == "MLP":
            hidden = outputs.size * outputs.dtype.itemsize * inputs["params"]["fc1"]["bias"].size // outputs.shape[-1]
            forward, backward = forward + 2 * hidden, backward + 3 * hidden  # backward reads one copy for each product
        if operation.joins:
            backward += nbytes(inputs["x"])
        if "x" not in inputs and "params" in inputs:  # the images
            backward += nbytes(constants)
        assert (operation.forward.bytes, operation.backward.bytes) == (forward, backward), operation.path
    assert adamw.backward.bytes == 7 * nbytes(twins_jax.get_params(model))


def test_floors_add_up() -> None:
    work = Work(flops=600, bytes=100), Work(flops=0, bytes=1000)  # at 100 a second and 20 a second
    operations = [
        Operation("MLP", "a", 3, (), 0, *work),
        Operation("MLP", "b", 1, (), 0, *work[::-1]),
        Operation("norms", "c", 2, (), 0, work[1], work[1]),
        Operation("AdamW", "", 1, (), 0, Work(0, 0), work[0]),
    ]
    infer = train.benchmark.roofline.summarize(operations, "infer", 100.0, 20.0)
    assert infer["parts"].keys() == {"MLP", "norms"}
    assert infer["parts"]["MLP"] == {
        "flops": 1800,
        "bytes": 1300,
        "flops_seconds": 18,
        "bytes_seconds": 65,
        "floor": 3 * 6 + 50,
    }
    assert infer["total"]["floor"] == 3 * 6 + 50 + 2 * 50
    step = train.benchmark.roofline.summarize(operations, "train", 100.0, 20.0)
    assert {part: figures["floor"] for part, figures in step["parts"].items()} == {
        "MLP": 3 * (6 + 50) + 50 + 6,
        "norms": 2 * (50 + 50),
        "AdamW": 6,
    }


def run(*arguments: str) -> int:
    """Of a small model that has every kind of layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(twins_jax.config.VARIANTS, "narrow", SVT)
        return train.benchmark.roofline.main(["--variants", "narrow", "--size", "32", "--batch", "2", *arguments])


def test_the_floor_on_an_h100(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "figures.json"
    assert run("--mode", "infer", "train", "--out", str(out)) == 0
    infer, step = json.loads(out.read_text())["results"]
    assert step["parts"].keys() - infer["parts"].keys() == {"AdamW"}
    for result in (infer, step):
        for figures in (*result["parts"].values(), result["total"]):
            assert figures["flops_seconds"] == pytest.approx(figures["flops"] / 989.4e12)
            assert figures["bytes_seconds"] == pytest.approx(figures["bytes"] / 3.35e12)
    printed = capsys.readouterr().out
    assert f"at most {2 / infer['total']['floor']:.0f} images/s" in printed
    assert "measured" not in printed


@pytest.fixture
def _fast_compilation() -> Iterator[None]:
    with fast_compilation(), jax.numpy_dtype_promotion("standard"):  # optax promotes
        yield


@pytest.mark.usefixtures("_fast_compilation")
def test_a_step_measured_where_jax_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_stage(*arguments: Any) -> list[Operation]:  # has every kind of layer; compiling the others takes long
        *operations, adamw = count(*arguments)
        return [operation for operation in operations if "/stages/0/" in operation.path or operation.part == "head"] + [
            adamw
        ]

    def seconds(program: Callable[..., jax.Array], *arguments: Any) -> float:
        begin = time.perf_counter()
        program(*arguments).block_until_ready()
        return time.perf_counter() - begin

    monkeypatch.setattr(train.benchmark.roofline, "count", first_stage)
    monkeypatch.setattr(train.flops, "_seconds", seconds)  # of one run: it takes twenty, over a quarter of a gigabyte
    out = tmp_path / "figures.json"
    arguments = ("--device", "this", "--measure", "--seconds", "0.001", "--out", str(out))
    assert run("--mode", "train", *arguments) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert all(0 < figures["measured"] < 10 for figures in result["parts"].values())
    assert 0 < result["measured_whole"] < 10
    assert "floor/measured" in capsys.readouterr().out


@pytest.mark.usefixtures("_fast_compilation")
def test_a_forward_pass_is_measured_alone() -> None:
    timer = Timer(SVT, 10, "infer", 0.001)
    *operations, adamw = count(SVT, 10, 2, 32, 32)
    assert timer.operation(adamw) == 0
    assert 0 < timer.operation(next(operation for operation in operations if operation.part == "LSA")) < 10
    assert 0 < timer.whole(2, 32) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "resnet"), "error: --variants='resnet': must be one of "),
        (("--batch", "0"), "error: --batch=0: must be an integer from 1"),
        (("--size", "31"), "error: --size=31: must be an integer from 32"),
        (("--measure",), "error: --device='h100': must be this with --measure"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith(message)
