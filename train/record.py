"""The record of a run: its settings and its data set, which a later start in the same folder must share."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

from flax import traverse_util

from twins_jax.errors import InputError
from twins_jax.files import read_object, write_text

from .config import RunConfig
from .config_file import read_config
from .task import DatasetInfo
from .workdir import CHANGES, CONFIG, DATASET, holds_checkpoint

LENGTH = frozenset({"steps", "epochs"})
"""The settings of a run's length. They may change, and with them the learning rates to come: that is recorded."""

MAY_CHANGE = LENGTH | {
    # How the run is started, and where it computes.
    *("workdir", "eval_only", "allow_changes", "report", "profile", "fsdp", "compilation_cache"),
    *("distributed.mode", "distributed.coordinator", "distributed.processes", "distributed.process_id"),
    "distributed.timeout_seconds",
    # The reading of the data: `dataset.json` tells whether a folder elsewhere holds the same.
    *("data.dir", "data.threads", "data.workers", "data.on_error", "data.max_errors"),
    # The files that it writes, and when.
    *("checkpoint.every_steps", "checkpoint.keep"),
    *("log_every_steps", "eval_every_steps", "eval_batch_size"),
}
"""The settings that a run may go on with when they have changed; by default a setting is none of them.

All others decide the function that the model computes, the order of the data or the steps of the optimizer.
"""


class Record:
    """WORKDIR/config.json and WORKDIR/dataset.json, beside the settings and the data set of this start.

    Only `write` changes anything. In a folder without a checkpoint nothing goes on: the record begins anew.

    Args:
        workdir: of the run.
        config: of this start.
    """

    def __init__(self, workdir: Path, config: RunConfig) -> None:
        self._workdir = workdir
        self._config = config
        self._info: DatasetInfo | None = None
        self._goes_on = holds_checkpoint(workdir)
        self._changes: dict[str, tuple[Any, Any]] = {}

    @property
    def changes(self) -> list[str]:
        """The changes that `write` adds to the record, a line each."""
        return [_difference(name, *values) for name, values in self._changes.items()]

    def check_settings(self) -> None:
        """Compares the settings with those of the run.

        `init` has done its work: left out, it stays as the record has it.

        Raises:
            InputError: one differs that `MAY_CHANGE` does not list, and the config does not allow it; or the record
                cannot be read.
        """
        path = self._workdir / CONFIG
        if not self._goes_on:
            return
        if not path.exists():
            warnings.warn(f"{path} is missing: the settings are not compared with the run's", stacklevel=2)
            return
        try:
            stored = read_config(path, type(self._config))
        except InputError as error:
            raise InputError(f"{error}; remove it to go on without comparing the settings") from error
        self._config = dataclasses.replace(self._config, init=self._config.init or stored.init)
        configs = (dataclasses.asdict(config) for config in (stored, self._config))
        before, now = (traverse_util.flatten_dict(config, sep=".") for config in configs)
        changes = _changes(before, now)
        self._take({name: values for name, values in changes.items() if name not in MAY_CHANGE}, "settings")
        self._changes |= {name: values for name, values in changes.items() if name in LENGTH}

    def check_dataset(self, info: DatasetInfo) -> None:
        """Compares the data set with the run's: its classes, and where the run is to go on its size.

        Args:
            info: of this start's data set.

        Raises:
            InputError: it differs, and the config does not allow it; or the record cannot be read.
        """
        self._info = info
        path = self._workdir / DATASET
        if not self._goes_on or not path.exists():  # as in runs of version 0.1
            return
        now = _as_json(info)
        try:
            stored = read_object(path)
            is_whole = {name: type(stored.get(name)) for name in now} == {name: type(now[name]) for name in now}
            if not is_whole:
                raise InputError(f"{path}: must hold {', '.join(now)}")
        except InputError as error:
            raise InputError(f"{error}; remove it to go on without comparing the data") from error
        if self._config.eval_only:
            stored, now = ({"class_names": each["class_names"]} for each in (stored, now))
        changes = _changes(stored, now)
        self._take({f"dataset.{name}": values for name, values in changes.items()}, "data")

    def write(self, step: int) -> None:
        """Writes the record of this start, with what has changed; to be called when nothing can refuse it any more.

        Args:
            step: from which the run goes on.

        Raises:
            InputError: it cannot be written.
        """
        assert self._info is not None, "check_dataset comes first"
        changes = self._workdir / CHANGES
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if not self._goes_on:
                changes.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
            elif self._changes:
                with changes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "changes": self._changes}) + "\n")
        except OSError as error:
            raise InputError(f"workdir: {error.filename} cannot be made or written: {error.strerror}") from error
        write_text(self._workdir / CONFIG, json.dumps(dataclasses.asdict(self._config), indent=2) + "\n")
        write_text(self._workdir / DATASET, json.dumps(_as_json(self._info), indent=2) + "\n")

    def _take(self, changes: dict[str, tuple[Any, Any]], of: str) -> None:
        """Keeps the changes for `write` if they are allowed."""
        if changes and not self._config.allow_changes:
            head = f"workdir: {self._workdir} holds a run with other {of}; give another folder or --allow_changes:"
            raise InputError("\n".join([head, *(f"  ! {_difference(name, *both)}" for name, both in changes.items())]))
        self._changes |= changes


def default_settings(path: Path, recipe: RunConfig, *, workdir: str, evaluates: bool) -> RunConfig:
    """Reads the settings of a start without flags from the record of a run.

    Args:
        path: of the run's config.json.
        recipe: of the same task.
        workdir: of the start. The record's own is not taken.
        evaluates: the start evaluates a checkpoint: `init`, which it would evaluate instead, and what the run did
            beside training are not taken.

    Raises:
        InputError: the record cannot be read, or is of another task.
    """
    stored = read_config(path, type(recipe))
    here = dataclasses.replace(stored.distributed, coordinator="", processes=1, process_id=0)
    config = dataclasses.replace(stored, workdir=workdir, eval_only=False, allow_changes=False, distributed=here)
    return dataclasses.replace(config, init="", report=False, profile=False) if evaluates else config


def _as_json(info: DatasetInfo) -> dict[str, Any]:
    return dataclasses.asdict(info) | {"class_names": list(info.class_names)}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (before[name], now[name]) for name in now if before[name] != now[name]}


def _difference(name: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and len(old) == len(new):  # thousands of classes: the first that differs
        position = next(index for index, values in enumerate(zip(old, new, strict=True)) if values[0] != values[1])
        return _difference(f"{name}[{position}]", old[position], new[position])
    if isinstance(old, list):
        return f"{name} has {len(new)} entries, the run has {len(old)}"
    return f"{name} is {new!r}, the run has {old!r}"
