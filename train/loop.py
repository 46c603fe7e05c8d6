"""A run: restore, then step, log, evaluate and save until the last step."""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import twins_jax
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data.classification import eval_batches, train_batches
from train.data.sources import dataset_info
from train.evaluators.classification import evaluate, make_eval_step
from train.metrics import MetricWriter
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.step import batch_shapes, make_train_step
from twins_jax import InputError, TwinsClassifier

MAX_IN_FLIGHT = 2
"""Steps that may be queued on the device: enough to keep it busy, few enough that their batches fit in memory."""


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains, or only evaluates, as `config` says.

    Returns:
        The last evaluation: "top1", "top5" (fractions), "loss", "examples" and "step".

    Raises:
        InputError: a setting, the data or a checkpoint is not what it must be.
    """
    workdir = Path(config.workdir).expanduser()
    info = dataset_info(config.data)
    model = create_or_load_model(config, info.num_classes)
    apply, params = twins_jax.split_model(model)
    schedule = make_schedule(config, info.train_examples)
    optimizer = make_optimizer(config, schedule)
    state = create_state(params, optimizer)
    eval_step = make_eval_step(apply)
    eval_data = eval_batches(config.data, config.eval_batch_size)

    if config.eval_only:
        has_checkpoint = (workdir / "checkpoints").is_dir()
        if not has_checkpoint and not config.init:
            raise InputError(f"eval_only: {workdir} holds no checkpoint, and no init is given")
        if has_checkpoint:
            with Checkpoints(workdir, config.checkpoint) as checkpoints:
                if checkpoints.latest_step() is not None:
                    state = checkpoints.restore(state, data=None)
        return {**evaluate(eval_step, state.params, _closing(eval_data)), "step": int(state.step)}

    workdir.mkdir(parents=True, exist_ok=True)
    _write_json(workdir / "config.json", dataclasses.asdict(config))
    train_step = make_train_step(apply, optimizer, config, info.num_classes)
    total = config.total_steps(info.train_examples)
    data = iter(train_batches(config.data, config.batch_size, config.seed))
    with contextlib.closing(data), Checkpoints(workdir, config.checkpoint) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state, data)
        start = int(state.step)
        if start:
            print(f"{workdir} holds step {start} of {total}: going on from there", flush=True)

        pending: list[Any] = []
        evaluation: dict[str, Any] = {}
        # Compiled ahead, so that the first line's images/s is not that of the compiler.
        train_step = train_step.lower(state, batch_shapes(config)).compile()
        with MetricWriter(workdir, start) as writer, _progress_bar(start, total) as progress:
            last_log = time.perf_counter()
            for step in range(start + 1, total + 1):
                state, metrics = train_step(state, next(data))
                pending.append(metrics)
                if len(pending) > MAX_IN_FLIGHT:
                    jax.block_until_ready(pending[-MAX_IN_FLIGHT - 1])
                progress.update()
                is_last = step == total
                if step % config.log_every_steps == 0 or is_last:
                    values = _means(pending)
                    now = time.perf_counter()
                    values["images_per_s"] = len(pending) * config.batch_size / (now - last_log)
                    values["learning_rate"] = float(schedule(step - 1))
                    values["epoch"] = step * config.batch_size / info.train_examples
                    pending, last_log = [], now
                    writer.write(step, "train", values)
                    progress.set_postfix_str(
                        f"epoch {values['epoch']:.1f} loss {values['loss']:.3f} {values['images_per_s']:.0f} images/s",
                        refresh=False,
                    )
                checkpoints.save(state, step, data, last=is_last)
                if step % config.eval_every_steps == 0 or is_last:
                    evaluation = evaluate(eval_step, state.params, _closing(eval_data))
                    writer.write(step, "eval", evaluation)
                    progress.write(f"step {step}: " + " ".join(f"{k} {v:.4g}" for k, v in evaluation.items()))
                    last_log = time.perf_counter()
    if not evaluation:  # the run had been finished before
        evaluation = evaluate(eval_step, state.params, _closing(eval_data))
    return {**evaluation, "step": int(state.step)}


def create_or_load_model(config: TrainConfig, num_classes: int) -> TwinsClassifier:
    """The model of a run, with fresh weights or those of `config.init`.

    Raises:
        InputError: `init` cannot be loaded or is of another variant than `model.name`.
    """
    uses: dict[str, Any] = {
        "drop_path_rate": config.model.drop_path_rate,
        "dropout_rate": config.model.dropout_rate,
        "window_padding": config.model.window_padding,
        "dtype": jnp.dtype(config.model.dtype),
        "remat": config.model.remat,
    }
    rngs = nnx.Rngs(config.seed)
    if config.init:
        return twins_jax.from_pretrained(
            config.init, name=config.model.name, num_classes=num_classes, rngs=rngs, **uses
        )
    return twins_jax.create_model(config.model.name, num_classes=num_classes, rngs=rngs, **uses)


def _closing(batches: grain.IterDataset) -> Iterator[Any]:
    """Iterates over a data set once and ends its worker processes."""
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator


def _progress_bar(start: int, total: int) -> tqdm:
    """On a terminal a bar that moves; in a log a line every half a minute."""
    return tqdm(total=total, initial=start, unit="step", mininterval=0.1 if sys.stderr.isatty() else 30.0)


def _means(metrics: list[dict[str, jax.Array]]) -> dict[str, float]:
    """The mean of each metric over some steps; this waits for them."""
    on_host = jax.device_get(metrics)
    return {key: float(np.mean([values[key] for values in on_host])) for key in on_host[0]}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(aside, path)
