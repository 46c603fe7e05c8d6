"""The settings that every training run has, typed; each task adds its own (`tasks/*/config.py`)."""

import abc
import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Required

import jax
import jax.numpy as jnp

from twins_jax.config import RuntimeOptions, TwinsConfig, variant_config
from twins_jax.errors import MAX_INT, InputError, require
from twins_jax.paths import HUB_PREFIX, check_path

from .validation import check_types

if TYPE_CHECKING:
    import optax

    from .task import DatasetInfo, Task


class ModelConfig(RuntimeOptions, total=False):
    """The model and how it computes."""

    name: Required[str]
    """A variant, one of `twins_jax.list_models()`."""


ModelConfig.__doc__ = RuntimeOptions.__doc__  # the flags' help

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TwinsConfig)}
MODEL_DEFAULTS: dict[str, Any] = {name: _DEFAULTS[name] for name in RuntimeOptions.__annotations__}
MODEL_DEFAULTS["dtype"] = jnp.dtype(MODEL_DEFAULTS["dtype"]).name  # as a flag and in config.json
"""The model's own defaults, which complete a `ModelConfig`."""


HUGGING_FACE = "hf:"
"""The prefix of `data.source` for data sets that the library `datasets` reads."""

MAX_THREADS = 4096
"""Bound of threads and processes, beyond which a machine could start none of them."""

MAX_BATCH_SIZE = 2**20
"""Bound of a batch, some ten times the largest that are in use: a step of more would compile for hours, then fail."""

MAX_TIMEOUT = 7 * 24 * 3600
"""A week in seconds; JAX counts in milliseconds that fit into int32."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The place of the data, and the threads and processes that read it."""

    source: str = "folder"
    """Kind or name of the data set."""

    dir: str = ""
    """Folder of the data set."""

    threads: int = 8
    """Threads that build batches, in each reading process; each holds one batch in memory."""

    workers: int = 0
    """Worker processes that build batches; 0: the training process does."""

    on_error: Literal["stop", "skip"] = "stop"
    """An example that cannot be read. stop: ends the run. skip: training takes the next one that can be read in its
    place, evaluation leaves it out, and the metrics count it as `skipped`."""

    max_errors: float = 0.01
    """skip: largest share of the examples of a pass that may be damaged; beyond it the run ends."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        if self.dir:
            check_path("data.dir", self.dir)
        many = f"{MAX_THREADS}, more than any machine has"
        require("data.threads", self.threads, 1 <= self.threads <= MAX_THREADS, f"an integer from 1 to {many}")
        require("data.workers", self.workers, 0 <= self.workers <= MAX_THREADS, f"an integer from 0 to {many}")
        require("data.max_errors", self.max_errors, 0 <= self.max_errors <= 1, "a share in [0, 1]")


@dataclasses.dataclass(frozen=True)
class OptimConfig(abc.ABC):
    """AdamW. Each task's own class decides the schedule of the learning rate and the parameters that decay."""

    learning_rate: float
    """Peak learning rate."""

    weight_decay: float
    """Decoupled weight decay."""

    clip_norm: float = math.inf
    """Largest global norm of the gradients; inf: no clipping."""

    accumulate: int = 1
    """Parts into which a batch is cut to fit in memory. Their gradients are averaged."""

    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0: none. It is evaluated beside them."""

    def __post_init__(self) -> None:
        check_types(self, "optim.")
        rate, decay = self.learning_rate, self.weight_decay
        require("optim.learning_rate", rate, 0 < rate < math.inf, "a positive number")
        require("optim.weight_decay", decay, 0 <= decay < math.inf, "a number from 0")
        require("optim.clip_norm", self.clip_norm, self.clip_norm > 0, "a positive number, or inf for no clipping")
        require("optim.accumulate", self.accumulate, self.accumulate >= 1, "an integer from 1")
        require("optim.ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "a decay in [0, 1)")

    @abc.abstractmethod
    def make_schedule(self, *, batch_size: int, total_steps: int, train_examples: int) -> "optax.Schedule":
        """Makes the learning rate by step, from step 0.

        Args:
            batch_size: examples in a step.
            total_steps: length of the run.
            train_examples: examples in an epoch.
        """

    @abc.abstractmethod
    def decays(self, path: str, leaf: jax.Array) -> bool:
        """Decides whether a parameter decays, by its path ("head/kernel") and its shape."""

    def update_scales(self, model_name: str) -> Callable[[str], float] | None:
        """Makes the function from a parameter's path to the factor on its update, weight decay included.

        Args:
            model_name: the variant, one of `twins_jax.list_models()`.

        Returns:
            None if every factor is 1: the optimizer then has no such part.
        """
        del model_name
        return None


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that make up a run."""

    mode: Literal["auto", "off"] = "auto"
    """auto: join the given coordinator, or the cluster that JAX detects (SLURM, Open MPI, TPU pods), if it detects one.
    off: this process is the whole run."""

    coordinator: str = ""
    """HOST:PORT of process 0, where the cluster is not detected."""

    processes: int = 1
    """Number of processes; read with `coordinator` only."""

    process_id: int = 0
    """Number of this process; read with `coordinator` only."""

    timeout_seconds: int = 100
    """Time to wait for the others at the start, and for one that is silent during the run."""

    def __post_init__(self) -> None:
        check_types(self, "distributed.")
        address = re.fullmatch(r"[^\s/]+:(\d{1,5})", self.coordinator)
        is_address = not self.coordinator or bool(address and 1 <= int(address[1]) < 2**16)
        require("distributed.coordinator", self.coordinator, is_address, "HOST:PORT, with a port from 1 to 65535")
        require("distributed.processes", self.processes, self.processes >= 1, "an integer from 1")
        in_range = 0 <= self.process_id < self.processes
        require("distributed.process_id", self.process_id, in_range, f"an integer from 0 to {self.processes - 1}")
        in_range = 1 <= self.timeout_seconds <= MAX_TIMEOUT
        require("distributed.timeout_seconds", self.timeout_seconds, in_range, f"an integer from 1 to {MAX_TIMEOUT}")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The steps that write checkpoints, and the checkpoints that are kept."""

    every_steps: int = 500
    """Steps between checkpoints; the last step always has one."""

    keep: int = 2
    """Newest checkpoints that are kept, beside the one that evaluated best."""

    def __post_init__(self) -> None:
        check_types(self, "checkpoint.")
        require("checkpoint.every_steps", self.every_steps, self.every_steps >= 1, "an integer from 1")
        require("checkpoint.keep", self.keep, self.keep >= 1, "an integer from 1")


@dataclasses.dataclass(frozen=True)
class RunConfig(abc.ABC):
    """The settings that the runs of all tasks share. The same config on the same devices gives the same run."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings of older versions, "group.field", by the names that they have now."""

    model_defaults: ClassVar[Mapping[str, Any]] = MODEL_DEFAULTS
    """The values of the model's options that are not given."""

    advanced: ClassVar[Collection[str]] = (
        *("eval_batch_size", "log_every_steps", "allow_changes", "profile", "fsdp", "checkpoint.keep"),
        "compilation_cache",
        *("model.dropout_rate", "model.window_padding", "model.attention_implementation", "model.remat"),
        *("data.threads", "data.on_error", "data.max_errors", "optim.clip_norm"),
        *(f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)),
    )
    """Flags that the short help leaves out."""

    workdir: str
    """Folder of the run. A rerun goes on from the newest checkpoint in it."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    init: str = ""
    """Checkpoint to start from. Anything that `twins_jax.from_pretrained` takes."""

    epochs: float = 300.0
    """Length of the run in passes over the training examples. `steps` takes its place."""

    steps: int | None = None
    """Length of the run in steps."""

    batch_size: int = 1024
    """Examples in a step, over all devices and hosts."""

    seed: int = 0
    """Seed of initial weights, the order of examples, augmentation, dropout."""

    eval_every_steps: int = 5000
    """Steps between evaluations; the last step always has one."""

    eval_only: bool = False
    """Evaluate `init`, or else the newest checkpoint in `workdir`. With the latter, settings without a flag are those
    of the run in the folder."""

    report: bool = False
    """Write WORKDIR/report, a page that shows where the model errs, at the end."""

    eval_batch_size: int = 1024
    """Examples in an evaluation step, over all devices and hosts."""

    log_every_steps: int = 50
    """Steps between lines of training metrics."""

    allow_changes: bool = False
    """Go on in a folder whose run had other settings or other data, or evaluate it with them. Going on lists them in
    WORKDIR/config_changes.jsonl."""

    profile: bool = False
    """Write a trace of a few steps into WORKDIR/profile, for TensorBoard or Perfetto."""

    compilation_cache: str = ""
    """Folder of compiled programs, so that the next start does not compile again. By default twins_jax/compiled in the
    user's cache folder, with several processes nowhere; off: nowhere."""

    fsdp: int = 1
    """Devices over which parameters and optimizer state are split; the others hold copies."""

    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        check_types(self)
        options: Any = {**self.model_defaults, **self.model}
        require("model.name", None, "name" in options, "a variant, one of twins_jax.list_models()")
        try:
            variant_config(**options)
        except InputError as error:
            raise InputError(f"model.{error}") from error  # its options are flags that begin so
        options["dtype"] = jnp.dtype(options["dtype"]).name  # as in config.json
        object.__setattr__(self, "model", options)
        check_path("workdir", self.workdir)
        if not self.init.startswith(HUB_PREFIX) and self.init:
            check_path("init", self.init)
        require("seed", self.seed, 0 <= self.seed < 2**31, "an integer from 0 to 2**31 - 1")
        require("epochs", self.epochs, 0 < self.epochs < math.inf, "a positive number")
        require("steps", self.steps, self.steps is None or self.steps >= 1, "None or an integer from 1")
        for field in ("batch_size", "eval_batch_size"):
            is_size = 1 <= getattr(self, field) <= MAX_BATCH_SIZE
            require(field, getattr(self, field), is_size, f"an integer from 1 to {MAX_BATCH_SIZE}")
        for field in ("eval_every_steps", "log_every_steps", "fsdp"):
            require(field, getattr(self, field), getattr(self, field) >= 1, "an integer from 1")
        parts = self.optim.accumulate
        require("batch_size", self.batch_size, self.batch_size % parts == 0, f"a multiple of optim.accumulate, {parts}")

    @abc.abstractmethod
    def make_task(self, info: "DatasetInfo | None" = None) -> "Task":
        """Makes the task of this run.

        Args:
            info: of the data set, to leave its files unread; None reads it off them.

        Raises:
            InputError: the data set is not what it must be.
        """

    def total_steps(self, train_examples: int) -> int:
        """Returns the length of the run in steps.

        Raises:
            InputError: the steps are more than their counter, an int32, can hold.
        """
        steps = self.epochs * train_examples / self.batch_size
        is_countable = self.steps is not None or steps <= MAX_INT
        require("epochs", self.epochs, is_countable, f"fewer: {steps:.3g} steps are more than {MAX_INT}")
        return self.steps or max(1, round(steps))
