"""Checkpoints of a run: WORKDIR/checkpoints/STEP/{params,opt_state,data}."""

from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from train.config import CheckpointConfig
from train.state import TrainState
from twins_jax.errors import InputError


class Checkpoints:
    """Saves and restores the state of a run and the position in its data.

    A context manager; leaving it waits for the saves that are under way. Saves are asynchronous, and a checkpoint
    appears under its step only when it is complete.
    """

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=save_decision_policy.FixedIntervalPolicy(config.every_steps),
                preservation_policy=preservation_policy.LatestN(config.keep),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, data: grain.DatasetIterator, *, last: bool) -> None:
        """Saves if a checkpoint is due after `step` steps, or if it is the last."""
        if step == self._manager.latest_step():
            return
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            data=grain.checkpoint.CheckpointSave(data),
        )
        self._manager.save(step, args=args, force=last)

    def restore(self, state: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        """Restores the newest checkpoint.

        Args:
            state: has the structure, shapes, dtypes and shardings wanted.
            data: the iterator to set to the saved position; None leaves the data out.

        Raises:
            InputError: lists the parameters that the checkpoint and the model do not have in common.
        """
        step = self._manager.latest_step()
        assert step is not None, "there is no checkpoint to restore"
        self._check_params(step, state.params)
        items: dict[str, Any] = {
            "params": ocp.args.StandardRestore(_abstract(state.params)),
            "opt_state": ocp.args.StandardRestore(_abstract(state.opt_state)),
        }
        if data is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return TrainState(jax.numpy.asarray(step, jax.numpy.int32), restored["params"], restored["opt_state"])

    def _check_params(self, step: int, params: Any) -> None:
        folder = self._manager.directory / str(step) / "params"
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = _shapes(checkpointer.metadata(folder).item_metadata.tree)
        wanted = _shapes(params)
        problems = [f"  - {name} {shape} is missing" for name, shape in wanted.items() if name not in saved]
        problems += [f"  + {name} {shape} is left over" for name, shape in saved.items() if name not in wanted]
        problems += [
            f"  ! {name} has shape {saved[name]}, expected {shape}"
            for name, shape in wanted.items()
            if name in saved and saved[name] != shape
        ]
        if problems:
            head = f"workdir: {folder.parent} does not fit the model, whose name or classes must have been others:"
            raise InputError("\n".join([head, *problems]))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in tree_flatten_with_path(tree)[0]}
