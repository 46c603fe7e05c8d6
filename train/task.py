"""The seam between the training system and its models: one loop, one `Task` for each kind of problem.

The loop, the step, the evaluation and the checkpoints know a task by this protocol alone; `tasks/*/task.py` hold the
implementations.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
from flax import nnx

if TYPE_CHECKING:
    import grain

Split = Literal["train", "eval"]

Batch = dict[str, Any]
"""Arrays by name, each with the examples of the batch along its first axis."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set on which a model and a schedule depend."""

    num_classes: int
    class_names: tuple[str, ...]
    train_examples: int
    eval_examples: int


class Evaluator(Protocol):
    """Evaluates one pass over a split."""

    def step(self, model: Any, batch: Batch) -> Any:
        """Computes a pytree of arrays from a batch: a pure function, which the loop compiles for each shape of batches.

        Args:
            model: with running statistics, and without randomness.
            batch: over all devices; rows of padding have a False "mask".

        Returns:
            Arrays that every process gets whole.
        """

    def update(self, outputs: Any, batch: Batch) -> None:
        """Takes in the outputs of `step` for a batch. Need not wait for the device.

        Args:
            outputs: whole in every process.
            batch: as `step` had it. With several processes its arrays are spread over them: `step` returns what is
                needed of it, such as the ids of images. A report, which is made by one process, may read it.
        """

    def result(self) -> dict[str, float | int]:
        """Returns the figures of the pass, "examples" among them; a "loss" must be finite, others need not be."""


class Task(Protocol):
    """A data set, a model, a loss and an evaluation."""

    @property
    def best_metric(self) -> str:
        """The figure of an evaluation whose largest value marks the best checkpoint."""

    @property
    def info(self) -> DatasetInfo:
        """The data set: the lengths of an epoch and of an evaluation, and facts for the run's record."""

    def create_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Creates the model with its first weights, fresh or read from a file.

        Args:
            rngs: `params` stream for fresh weights.

        Raises:
            InputError: the file cannot be read or does not fit.
        """

    def batches(self, split: Split, batch_size: int, *, shard: int = 0, shards: int = 1) -> "grain.IterDataset":
        """Reads batches of NumPy arrays: an endless stream of "train" in the seed's order, each example of "eval" once.

        A batch of "eval" has a bool "mask" [batch_size], False on padding. Of "eval" all shards have the same number of
        batches, and the k-th batches of all have the same shapes, which may be others than those of the next.

        Args:
            split: the examples to read.
            batch_size: of this shard's batches.
            shard: number of the part to read, 0 to `shards` - 1.
            shards: number of parts, one for each process of the run.
        """

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch of "train"."""

    def augment(self, batch: Batch, keys: Sequence[jax.Array]) -> Batch:
        """Changes a batch on the device, inside the training step and before the batch is cut into parts.

        Args:
            batch: of "train", over all devices.
            keys: two keys of the step's, to draw from.
        """

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a batch or of a part of one, and other scalars to log.

        The step averages the losses and gradients of parts. A loss that is normalized by a count within the batch, such
        as that of valid pixels, therefore depends on `optim.accumulate`.

        Args:
            model: whose running statistics it may update.
            batch: as `augment` returns it.
            rngs: `dropout` stream; its presence means training.

        Returns:
            float32 [], which must be finite, and float32 [] by name, which need not be.
        """

    def evaluator(self) -> Evaluator:
        """Makes a new evaluator."""

    def report(self, folder: Path) -> Evaluator:
        """Makes a new evaluator whose `result` writes FOLDER/index.html, a page that shows where the model errs."""
