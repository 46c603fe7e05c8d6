"""Top-1, top-5, mean average precision and loss over a whole split, exact even with a padded last batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twins_jax.preprocess import normalize

from ...task import Batch
from .losses import binary_cross_entropy, cross_entropy, smooth_targets

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


class MultiLabelEvaluator:
    """Keeps the logits and labels of a pass, 5 bytes an example and class; implements `Evaluator`."""

    def __init__(self) -> None:
        self._logits: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._loss = 0.0

    def step(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Computes the logits of a batch.

        Args:
            model: images [B, H, W, 3] -> logits [B, classes].
            batch: {"image": uint8 [B, H, W, 3], "label": bool [B, classes], "mask": bool [B]}.

        Returns:
            "logits" float32 [B, classes]; "label" and "mask" of the batch; "loss" float32 [], the sum over the mask.
        """
        logits = model(normalize(batch["image"])).astype(jnp.float32)
        losses = binary_cross_entropy(logits, batch["label"].astype(jnp.float32))
        loss = jnp.where(batch["mask"], losses, 0.0).sum()
        return {"logits": logits, "label": batch["label"], "mask": batch["mask"], "loss": loss}

    def update(self, outputs: dict[str, jax.Array], batch: Batch) -> None:
        """Takes the rows of the mask from the device, whose memory need not hold those of the whole pass."""
        del batch
        logits, labels, mask = (np.asarray(outputs[name]) for name in ("logits", "label", "mask"))
        self._logits.append(logits[mask])
        self._labels.append(labels[mask])
        self._loss += float(outputs["loss"])

    def result(self) -> dict[str, float | int]:
        """Returns the figures of the pass, all 0 if no example was seen.

        "map": the mean of scikit-learn's average precision, without interpolation, over the classes that an example
        has; NaN ranks last. "f1": of all answers together at a probability of 1/2 (micro, OF1). "loss": mean binary
        cross-entropy without smoothing. "examples".
        """
        from sklearn.metrics import average_precision_score  # late: it takes a second

        examples = sum(map(len, self._logits))
        if not examples:
            return {"map": 0.0, "f1": 0.0, "loss": 0.0, "examples": 0}
        logits, labels = np.concatenate(self._logits), np.concatenate(self._labels)
        answers = logits > 0
        right = int((answers & labels).sum())
        wrong = int((answers ^ labels).sum())
        present = np.flatnonzero(labels.any(axis=0))
        scores = np.nan_to_num(logits[:, present], nan=np.finfo(logits.dtype).min)  # it takes finite ones alone
        return {
            "map": float(average_precision_score(labels[:, present], scores)) if present.size else 0.0,
            "f1": 2 * right / max(2 * right + wrong, 1),
            "loss": self._loss / examples,
            "examples": examples,
        }
