"""A run: restore, then step, log, evaluate and save until the last step."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from twins_jax import InputError, Params
from twins_jax.compilation_cache import compilation_cache
from twins_jax.errors import one_line, require
from twins_jax.paths import target_path

from . import flops
from .checkpoint import Checkpoints
from .config import RunConfig
from .distributed import StopRequest, initialize, is_main_process, on_main_process, sum_over_processes, to_global
from .errors import DivergedError, IncompleteError, PreemptedError
from .evaluate import MAX_IN_FLIGHT, evaluate, make_eval_step
from .experiment import Experiment, build
from .lock import owned_by_run
from .metric_writer import MetricWriter
from .profiler import Profiler
from .progress import Progress, counted
from .record import Record
from .state import TrainState
from .task import Batch
from .workdir import check_writable, holds_checkpoint


def run(config: RunConfig) -> dict[str, Any]:
    """Trains, or only evaluates, as `config` says.

    Returns:
        The last evaluation: the figures of the task's evaluator, and "step"; with a moving average of the weights also
        its figures, under "ema_...".

    Raises:
        InputError: a setting, the data or a checkpoint is not what it must be.
        DivergedError: a loss or gradient, or the loss of an evaluation, is not finite.
        PreemptedError: SIGTERM, SIGINT or SIGHUP came; the state is saved.
        IncompleteError: the last save, the report or the profile failed; holds the last evaluation.
    """
    initialize(config.distributed)
    # Of several processes the first alone writes: the user's folder on its host would serve no other.
    keeps = bool(config.compilation_cache) or jax.process_count() == 1
    with compilation_cache(config.compilation_cache or None) if keeps else contextlib.nullcontext():
        return _run(config)


def _run(config: RunConfig) -> dict[str, Any]:
    processes = jax.process_count()
    require("report", config.report, not config.report or processes == 1, f"False in a run of {processes} processes")
    workdir = target_path("workdir", config.workdir, "folder")
    if config.eval_only:
        with owned_by_run(workdir) if config.report else contextlib.nullcontext():  # the folder may be read-only
            return _evaluate_only(config, workdir)
    with StopRequest() as stop, owned_by_run(workdir):  # before the compilation, which may take minutes
        record = Record(workdir, config)
        on_main_process(lambda: check_writable(workdir))
        on_main_process(record.check_settings)
        experiment = build(config)
        on_main_process(lambda: record.check_dataset(experiment.task.info))
        shard, shards = jax.process_index(), jax.process_count()
        data = iter(experiment.task.batches("train", config.batch_size // shards, shard=shard, shards=shards))
        with (
            contextlib.closing(data),
            Checkpoints(workdir, config.checkpoint, experiment.task.best_metric) as checkpoints,
        ):
            if restored := checkpoints.restore(experiment.state, data):
                experiment = dataclasses.replace(experiment, state=restored)  # lets go of the first weights
                del restored
            start = int(experiment.state.step)
            on_main_process(lambda: record.write(start))  # no check is left that could refuse this start
            if is_main_process():
                print("".join(f"from step {start} on: {line}\n" for line in record.changes), end="", flush=True)
            return _train(experiment, workdir, data, checkpoints, stop)


def _train(
    experiment: Experiment, workdir: Path, data: grain.DatasetIterator, checkpoints: Checkpoints, stop: StopRequest
) -> dict[str, Any]:
    config, total = experiment.config, experiment.total_steps
    assert experiment.train_step is not None, "the run is built for evaluation only"
    state = experiment.state
    start = int(state.step)
    performance = flops.describe(experiment)
    if is_main_process():
        print(performance, flush=True)
        if start:
            print(f"{workdir} holds step {start} of {total}: going on from there", flush=True)

    pending: list[dict[str, jax.Array]] = []  # metrics of the steps since the last log, still on the device
    evaluation: dict[str, Any] | None = None
    skipped = data.skipped  # at the last log
    with (
        MetricWriter(workdir, start) if is_main_process() else contextlib.nullcontext() as writer,
        Profiler(workdir, start, enabled=config.profile) as profiler,
        Progress(start, total) as progress,
    ):
        last_log = time.perf_counter()
        for step in range(start + 1, total + 1):
            profiler.before(step)
            state, metrics = experiment.train_step(state, to_global(next(data), experiment.mesh))
            pending.append(metrics)
            if len(pending) > MAX_IN_FLIGHT:
                jax.block_until_ready(pending[-MAX_IN_FLIGHT - 1])
            profiler.after(step, metrics)
            progress.update()

            is_last, preempted = step == total, stop.requested(step)
            is_eval = is_last or step % config.eval_every_steps == 0
            is_save = is_last or preempted or checkpoints.is_due(step)
            if is_eval or is_save or step % config.log_every_steps == 0:
                values = _means(pending, last_step=step)
                now = time.perf_counter()
                rate = len(pending) * config.batch_size / (now - last_log)
                epoch = step * config.batch_size / experiment.task.info.train_examples
                values |= {"images_per_s": rate, "mfu": performance.mfu(rate)}
                values |= {"learning_rate": float(experiment.schedule(step - 1)), "epoch": epoch}
                if config.data.on_error == "skip":
                    values["skipped"] = sum_over_processes(data.skipped - skipped)
                    skipped = data.skipped
                if writer:
                    writer.write(step, "train", values)
                progress.log(step, values)
                pending = []
            evaluation = None
            if is_eval:
                evaluation = _evaluate(experiment, state)
                _check_finite(step, evaluation)
                if writer:
                    writer.write(step, "eval", evaluation)
                progress.log_evaluation(step, evaluation)
            if is_save:
                _save(checkpoints, state, step, data, evaluation, is_last=is_last)
            if not pending:
                last_log = time.perf_counter()  # the steps' time leaves out evaluation and saving
            if preempted and not is_last:
                message = f"{stop.signum.name}: saved step {step} of {total} in {workdir}; start again to go on"
                raise PreemptedError(message, stop.signum)
    # A run that found all its steps done has not evaluated yet.
    final = _final(experiment, workdir, state, evaluation or _evaluate(experiment, state))
    if profiler.failure:
        raise IncompleteError(f"profile: {profiler.failure}", final)
    return final


def _save(
    checkpoints: Checkpoints,
    state: TrainState,
    step: int,
    data: grain.DatasetIterator,
    evaluation: dict[str, Any] | None,
    *,
    is_last: bool,
) -> None:
    """Saves; the failure of the last save keeps the result."""
    try:
        checkpoints.save(state, step, data, evaluation)
        if is_last:
            checkpoints.wait()
    except InputError as error:
        if not (is_last and evaluation):
            raise
        raise IncompleteError(str(error), {**evaluation, "step": step}) from error


def _evaluate_only(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """Evaluates `init` if it is given, and the newest checkpoint of the folder otherwise."""
    can_evaluate = bool(config.init) or holds_checkpoint(workdir)
    require("init", config.init, can_evaluate, f"a checkpoint for eval_only: {workdir} holds none")
    record = Record(workdir, config)
    if not config.init:
        on_main_process(record.check_settings)
    experiment = build(config)
    state: TrainState | None = experiment.state
    if not config.init:
        on_main_process(lambda: record.check_dataset(experiment.task.info))
        with Checkpoints(workdir, config.checkpoint, experiment.task.best_metric) as checkpoints:
            state = checkpoints.restore(experiment.state, data=None)
    if state is None:
        raise InputError(f"workdir: {workdir / 'checkpoints'} holds no complete checkpoint")
    return _final(experiment, workdir, state, _evaluate(experiment, state))


def _final(experiment: Experiment, workdir: Path, state: TrainState, evaluation: dict[str, Any]) -> dict[str, Any]:
    final = {**evaluation, "step": int(state.step)}
    if experiment.config.report:
        try:
            report = experiment.task.report(workdir / "report")
            step = make_eval_step(report, experiment.graphdef, experiment.mesh)
            evaluate(report, step, state.params, state.batch_stats, _eval_batches(experiment, "writing the report,"))
        except Exception as error:  # whatever it is, it must not hide the result
            raise IncompleteError(f"report: {one_line(error)}", final) from error
    return final


def _evaluate(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    def evaluated(params: Params, what: str) -> dict[str, Any]:
        evaluator = experiment.task.evaluator()
        batches = _eval_batches(experiment, what)
        return evaluate(evaluator, experiment.eval_step, params, state.batch_stats, batches)

    result = evaluated(state.params, "evaluating")
    if state.ema is not None:
        averaged = evaluated(state.ema, "evaluating ema")
        result |= {f"ema_{name}": value for name, value in averaged.items() if name != "examples"}
    if experiment.config.data.on_error == "skip":
        result["skipped"] = experiment.task.info.eval_examples - result["examples"]
    return result


def _eval_batches(experiment: Experiment, what: str) -> Iterator[Batch]:
    """Yields the evaluation split; shows as progress `what` is done with it."""
    config, task, shards = experiment.config, experiment.task, jax.process_count()
    batches = task.batches("eval", config.eval_batch_size // shards, shard=jax.process_index(), shards=shards)

    def examples(batch: Batch) -> int:
        return int(batch["mask"].sum()) * shards  # about: other processes may have other numbers

    with contextlib.closing(iter(batches)) as iterator:
        for batch in counted(what, "examples", task.info.eval_examples, iterator, size=examples):
            yield to_global(batch, experiment.mesh)


def _means(metrics: list[dict[str, jax.Array]], last_step: int) -> dict[str, float]:
    """Computes the mean of each metric over the steps up to `last_step`; waits for them.

    Raises:
        DivergedError: one of them is not finite; names the first step.
    """
    on_host = jax.device_get(metrics)
    for step, values in enumerate(on_host, start=last_step - len(on_host) + 1):
        _check_finite(step, values)
    return {key: float(np.mean([values[key] for values in on_host])) for key in on_host[0]}


def _check_finite(step: int, values: Mapping[str, Any]) -> None:
    """Raises DivergedError where a loss or the gradients' norm is not finite; other figures may be undefined."""
    losses = [value for name, value in values.items() if name in ("loss", "ema_loss", "grad_norm")]
    if not all(map(math.isfinite, losses)):
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        raise DivergedError(
            f"step {step}: {found}. The last checkpoint is good. Go on with --allow_changes and a lower "
            "optim.learning_rate, a longer warm-up, a smaller optim.clip_norm, or model.dtype float32"
        )
