"""Top-1, top-5 and loss over a whole split, exact even with a padded last batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.preprocess import normalize

from ...task import Batch
from .losses import cross_entropy, smooth_targets

Sums = dict[str, jax.Array]


class ClassificationEvaluator:
    """Counts right answers and adds up losses; implements `Evaluator`."""

    def __init__(self) -> None:
        self._sums: list[Sums] = []

    def step(self, model: Any, batch: Batch) -> Sums:
        """Computes the sums of a batch.

        Args:
            model: images [B, H, W, 3] -> logits [B, classes].
            batch: {"image": uint8 [B, H, W, 3], "label": int32 [B], "mask": bool [B]}.

        Returns:
            Over the rows where the mask holds: "top1", "top5" and "examples" int32 [], "loss" float32 [].
        """
        logits = model(normalize(batch["image"])).astype(jnp.float32)
        labels, mask = batch["label"], batch["mask"]
        losses = cross_entropy(logits, smooth_targets(labels, logits.shape[-1], 0.0))
        # The rank of the label: the number of classes with a larger logit. Of equal logits the first counts as larger.
        score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        earlier = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None] < labels[:, None]
        rank = ((logits > score) | ((logits == score) & earlier)).sum(axis=-1)
        # A label whose logit is NaN is above nothing and must not count as found.
        found = mask & ~jnp.isnan(score[:, 0])
        return {
            "top1": (found & (rank < 1)).sum(dtype=jnp.int32),
            "top5": (found & (rank < 5)).sum(dtype=jnp.int32),
            "loss": jnp.where(mask, losses, 0.0).sum(),
            "examples": mask.sum(dtype=jnp.int32),
        }

    def update(self, outputs: Sums, batch: Batch) -> None:
        del batch
        self._sums.append(outputs)

    def result(self) -> dict[str, float | int]:
        """Returns "top1" and "top5" (fractions), "loss" (mean cross-entropy without smoothing) and "examples".

        All are 0 if no example was seen.
        """
        # In float64 on the host: a float32 sum over 50,000 losses would round in the third digit.
        totals = {
            key: np.sum([np.asarray(part[key], np.float64) for part in self._sums])
            for key in ("top1", "top5", "loss", "examples")
        }
        examples = int(totals["examples"])
        return {
            **{key: float(totals[key] / max(examples, 1)) for key in ("top1", "top5", "loss")},
            "examples": examples,
        }
