"""The sides that `train.benchmark.speed` compares, each in a process of its own."""

import contextlib
import dataclasses
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from twins_jax.errors import InputError

from ..huge_pages import VARIABLE, huge_pages_in_new_processes

if TYPE_CHECKING:
    from twins_jax.config import AttentionImplementation
    from twins_jax.segmentation.segmenter import SegmentationHead

    Head = Literal["none"] | SegmentationHead

OURS = "twins_jax"
TIMM = ("timm eager", "timm channels-last", "timm compiled")

# Both sides have these.
LEARNING_RATE = 1e-4
IMAGE_CLASSES = 1000
PIXEL_CLASSES = 150
AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss (upstream's UPerNet)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The thing to measure: one call of a variant on random images.

    Attributes:
        variant: the model's name.
        mode: "infer" (logits of 1,000 classes) or "train" (cross-entropy, gradients and a step of AdamW).
        batch: images in a call.
        size: their side.
        dtype: of the computation; the parameters are float32.
        device: "cpu", "cuda" or "tpu".
        attention_implementation: of this package's side; see `TwinsConfig`.
        head: "none" (a classifier), or a segmenter's: logits of 150 classes at each pixel, and in training the loss of
            all its heads there.
    """

    variant: str
    mode: str
    batch: int
    size: int
    dtype: str
    device: str
    attention_implementation: "AttentionImplementation" = "auto"
    head: "Head" = "none"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


class Side(NamedTuple):
    """A case made ready on one side.

    Attributes:
        call: runs it once and waits for the result.
        figures: "compile_seconds" and others that are measured once.
        peak_bytes: most memory held until now, of the device, or of the process where the device is the CPU.
    """

    call: Callable[[], None]
    figures: dict[str, float]
    peak_bytes: Callable[[], int]


class Worker:
    """A process that holds one side of a case and runs it when asked."""

    def __init__(self, side: str, case: Case) -> None:
        self.side = side
        # As `python -m train.main` starts; PyTorch's users get what their system has.
        self._pages = huge_pages_in_new_processes if (side, case.mode) == (OURS, "train") else contextlib.nullcontext
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(side, case, other), daemon=True)

    def start(self) -> dict[str, Any]:
        """Builds the side and calls it once; returns its figures."""
        # Ctrl-C is for the process that started this one, and kills it: the new one starts and works with the signal
        # blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with self._pages():
            self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._answer()

    def time(self, seconds: float) -> float:
        """The median seconds of a call, over about `seconds` of calls."""
        self._connection.send(("time", seconds))
        return float(self._answer())

    def memory(self) -> dict[str, int]:
        """The most bytes that were in use."""
        self._connection.send(("memory", None))
        return {"peak_bytes": self._answer()}

    def close(self) -> None:
        """Ends the process."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        while not self._connection.poll(1.0):
            if not self._process.is_alive():
                code = self._process.exitcode
                why = "; the kernel does that where memory runs out" if code == -signal.SIGKILL else ""
                raise InputError(f"{self.side} ended with exit code {code}{why}")
        return self._connection.recv()


def _serve(side: str, case: Case, connection: Connection) -> None:
    made = _make_ours(case) if side == OURS else _make_timm(side, case)
    made.call()
    connection.send(made.figures | {"glibc_tunables": os.environ.get(VARIABLE, "")})
    while True:
        request, value = connection.recv()
        connection.send(_time(made.call, value) if request == "time" else made.peak_bytes())


def _time(call: Callable[[], None], seconds: float) -> float:
    call()  # wakes up the threads
    took: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def _peak_process_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _make_ours(case: Case) -> Side:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other sides need the device's memory too
    import jax
    import jax.numpy as jnp

    # Not by the environment: to start this process, its parent's module has imported JAX, which reads that then.
    jax.config.update("jax_platforms", case.device)

    from ..flops import matmul_rate
    from .programs import make_program

    program, state, inputs, flops = make_program(case)
    figures: dict[str, float] = {}
    begin = time.perf_counter()
    compiled = program.lower(state, *inputs).compile()
    figures["compile_seconds"] = time.perf_counter() - begin
    costs: Any = compiled.cost_analysis()
    figures["flops"] = costs["flops"] if flops is None else flops
    figures["matmul_rate"] = matmul_rate(jnp.dtype(case.dtype))

    # The cost of a call besides the computation: the same arguments, and nothing to do with them.
    empty = jax.jit(lambda *_: jnp.zeros(()), keep_unused=True)
    figures["dispatch_seconds"] = _time(lambda: jax.block_until_ready(empty(state, *inputs)), 0.2)

    def infer() -> None:
        jax.block_until_ready(program(state, *inputs))

    def train() -> None:
        nonlocal state
        state, loss = program(state, *inputs)
        loss.block_until_ready()
        jax.block_until_ready(state)

    def peak_bytes() -> int:
        statistics_ = jax.devices()[0].memory_stats()
        return statistics_["peak_bytes_in_use"] if statistics_ else _peak_process_bytes()

    return Side(infer if case.mode == "infer" else train, figures, peak_bytes)


def _make_timm(side: str, case: Case) -> Side:
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or compile times would be those of an earlier run's cache
    import torch

    from .torch_models import make_torch_model

    model, labels, loss_of = make_torch_model(case)
    model, labels = model.to(case.device), labels.to(case.device)
    images = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
    if side != "timm eager":
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    run: Any = model
    if side == "timm compiled":
        run = torch.compile(model, mode="max-autotune" if case.device == "cuda" else "default")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    precision = torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16")

    def wait() -> None:
        if case.device == "cuda":
            torch.cuda.synchronize()

    def infer() -> None:
        with torch.inference_mode(), precision:
            run(images)
        wait()

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = loss_of(run(images), labels)
        loss.backward()
        optimizer.step()
        wait()

    def peak_bytes() -> int:
        return torch.cuda.max_memory_allocated() if case.device == "cuda" else _peak_process_bytes()

    model.train(case.mode == "train")
    call = infer if case.mode == "infer" else train
    begin = time.perf_counter()
    call()
    return Side(call, {"compile_seconds": time.perf_counter() - begin}, peak_bytes)
