"""Checkpoints of a run: WORKDIR/checkpoints/STEP/{params,opt_state,data}, and ema and batch_stats where it has any."""

import contextlib
import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from twins_jax.errors import InputError, one_line
from twins_jax.files import storage_failure
from twins_jax.fit import misfits
from twins_jax.port.orbax_io import checksum

from .config import CheckpointConfig
from .distributed import is_main_process, on_main_process
from .errors import IncompleteError
from .state import TrainState
from .workdir import CHECKPOINTS, check_folder, holds_checkpoint, new_damaged, try_to_write

Tree = dict[str, Any]

ITEMS = ("params", "batch_stats", "opt_state", "ema")
"""The fields of `TrainState` that are saved, each on its own; those that are empty are left out."""

METADATA = "_CHECKPOINT_METADATA"
"""Orbax's file about a checkpoint, JSON."""


class Checkpoints:
    """Saves and restores the state of a run and the position in its data.

    A context manager; leaving it waits for the saves that are under way. Saves are asynchronous, all processes write
    their parts, and a checkpoint appears under its step only when it is complete. The folder is made by the first save.

    Args:
        workdir: of the run.
        config: the steps that write checkpoints, and the checkpoints to keep.
        best_metric: the figure of an evaluation whose largest value marks one more checkpoint to keep.

    Raises:
        InputError: the folder of checkpoints, or a file in it, is something else.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig, best_metric: str) -> None:
        self._workdir = workdir.absolute()
        folder = self._workdir / CHECKPOINTS
        _check_readable(folder)
        self._best_metric = best_metric
        self._best = _Best()
        self._manager = _Manager(
            folder,
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ITEMS}
            | {"data": grain.checkpoint.CheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                create=False,
                save_decision_policy=save_decision_policy.FixedIntervalPolicy(config.every_steps),
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(config.keep), self._best]
                ),
            ),
        )
        for step in self._manager.all_steps():
            with contextlib.suppress(Exception):  # not evaluated, or damaged, which is `restore`'s to report
                # Not by Orbax's `metadata`, which opens every array: seconds of a start.
                about = json.loads((folder / str(step) / METADATA).read_text())["custom_metadata"]
                self._best.values[step] = float(about[best_metric])

    def is_due(self, step: int) -> bool:
        """True if the state after `step` steps must be saved."""
        return self._manager.should_save(step)

    def save(
        self, state: TrainState, step: int, data: grain.DatasetIterator, evaluation: Mapping[str, float] | None
    ) -> None:
        """Saves the state after `step` steps, unless that is done already; `evaluation` is the step's, if any.

        Raises:
            InputError: this save or the one before cannot be written, now or when the context is left.
        """
        if step == self._manager.latest_step():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        args = ocp.args.Composite(**items, data=grain.checkpoint.CheckpointSave(data))
        about: dict[str, Any] = {"checksums": {name: int(_checksum(tree)) for name, tree in _items(state).items()}}
        if evaluation:
            about[self._best_metric] = self._best.values[step] = evaluation[self._best_metric]
        with self._failures_named():
            self._manager.directory.mkdir(parents=True, exist_ok=True)
            try_to_write(self._manager.directory)
            self._manager.save(step, args=args, custom_metadata=about, force=True)

    def wait(self) -> None:
        """Waits for the saves that are under way.

        Raises:
            InputError: one cannot be written.
        """
        with self._failures_named():
            self._manager.wait_until_finished()

    def restore(self, state: TrainState, data: grain.DatasetIterator | None) -> TrainState | None:
        """Restores the newest readable checkpoint; reports newer ones that are not, and moves them to WORKDIR/damaged.

        Args:
            state: has the structure, shapes, dtypes and shardings wanted.
            data: the iterator to set to the saved position. None: the optimizer's state is not restored either, for
                evaluation, which leaves the folder as it is.

        Returns:
            The state, or None without a checkpoint.

        Raises:
            InputError: the checkpoint is of another model or optimizer, with their differences; or none can be read.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore_step(step, state, data)
            except (InputError, jax.errors.JaxRuntimeError):  # the latter where another process or memory is lacking
                raise
            except Exception as error:  # the kind depends on the place of the damage
                damaged[step] = one_line(error)
                continue
            # Only now, after another one could be read, the fault is certainly the checkpoint's.
            for damaged_step, why in damaged.items():
                self._report(damaged_step, why, moves=data is not None)
            return restored
        if damaged:
            reasons = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise InputError(f"workdir: no checkpoint in {self._manager.directory} can be read: {reasons}")
        return None

    def _restore_step(self, step: int, state: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        wanted = _items(state)
        if data is None:
            wanted.pop("opt_state", None)
        folder = self._manager.directory / str(step)
        metadata = self._manager.metadata(step)
        checksums = metadata.custom_metadata.get("checksums", {})
        if not checksums or not all(metadata.item_metadata.get(name) for name in checksums):
            raise OSError("its metadata is damaged")
        compared = [name for name in checksums if name in wanted or name == "batch_stats"]
        saved = _shapes({name: metadata.item_metadata[name].tree for name in compared})
        if problems := misfits(saved, _shapes(wanted)):
            head = f"workdir: {folder} does not fit; it was written by a run with another model or optimizer:"
            raise InputError("\n".join([head, *problems.values()]))

        args: dict[str, Any] = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        for name in wanted:
            if int(_checksum(restored[name])) != checksums[name]:
                raise OSError(f"the values of {name} are not those that were saved")
        if data is not None:
            _restore_position(folder / "data", data)
        trees = {name: _fill(getattr(state, name), restored[name]) for name in wanted}
        at_step = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
        return dataclasses.replace(state, step=at_step, **trees)

    def _report(self, step: int, why: str, *, moves: bool) -> None:
        about = f"the checkpoint of step {step} cannot be read ({why})"
        if moves:
            on_main_process(lambda: self._put_aside(step, about))
            self._manager.reload()
        elif is_main_process():
            warnings.warn(f"{about}: an older one is evaluated", stacklevel=2)

    def _put_aside(self, step: int, about: str) -> None:
        target = new_damaged(self._workdir, str(step))
        try:
            shutil.move(str(self._manager.directory / str(step)), str(target))
        except OSError as error:
            raise InputError(f"{target}: could not be written: {error.strerror or one_line(error)}") from error
        warnings.warn(f"{about}: moved to {target}", stacklevel=2)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._failures_named():
                self._manager.close()
        except InputError:
            if not isinstance(error, (InputError, IncompleteError)):  # they have told of the same failure
                raise

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not (cause := storage_failure(error)):
                raise
            folder = self._manager.directory
            kept = "the checkpoints before are kept: " if holds_checkpoint(self._workdir) else ""
            raise InputError(
                f"{folder}: could not be written: {cause}; {kept}make room or make it writable, "
                "and start the same command again"
            ) from error


@dataclasses.dataclass
class _Best(preservation_policy.PreservationPolicy):
    """Preserves the checkpoint that evaluated best, of equal ones the newest; Orbax's `BestN` knows only its own run's.

    Attributes:
        values: of the metric by step, of the checkpoints whose step was evaluated.
    """

    values: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: preservation_policy.PreservationContext
    ) -> Sequence[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        evaluated = (step for step in steps if step in self.values)
        best = max(evaluated, key=lambda step: (self.values[step], step), default=-1)
        return [step == best for step in steps]


def _check_readable(folder: Path) -> None:
    """Raises InputError for damage with which Orbax cannot list the checkpoints; `restore` copes with the rest."""
    check_folder(folder)
    for path in folder.glob(f"*/{METADATA}"):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        except RecursionError:  # brackets in brackets
            content = None
        if not isinstance(content, dict):
            raise InputError(f"{path}: damaged; move {path.parent} away to go on from the checkpoint before")


def _restore_position(folder: Path, data: grain.DatasetIterator) -> None:
    """Sets `data` to the position of process 0: all have read as many batches, whatever their number."""
    paths = list(folder.glob("process_0-of-*.json"))
    if len(paths) != 1:
        raise OSError("its position in the data is missing")
    data.set_state(json.loads(paths[0].read_text()))


@jax.jit
def _checksum(tree: Tree) -> jax.Array:
    return checksum(tree, jnp)


class _Manager(ocp.CheckpointManager):
    """Leaves it to `train.distributed.StopRequest` to ask for a request to stop.

    Orbax also asks when an asynchronous save ends, with the step of the save. JAX's service takes that for the step at
    which this process is, and could let the processes agree on one that it has passed.
    """

    def reached_preemption(self, step: int) -> bool:  # noqa: ARG002 - Orbax gives it
        return False


def _items(state: TrainState) -> dict[str, Tree]:
    """Returns the parts of a state to save, as nested dicts: files then do not depend on optax's classes."""
    leaves = {name: _leaves(getattr(state, name)) for name in ITEMS}
    return {name: traverse_util.unflatten_dict(part, sep="/") for name, part in leaves.items() if part}


def _fill(part: Any, tree: Tree) -> Any:
    """The inverse of `_items` for one part: the leaves of `tree` in the structure of `part`."""
    values = traverse_util.flatten_dict(tree, sep="/")
    return tree_unflatten(jax.tree.structure(part), [values[name] for name in _leaves(part)])


def _leaves(tree: Any) -> dict[str, Any]:
    return {keystr(path, simple=True, separator="/"): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _leaves(tree).items()}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
