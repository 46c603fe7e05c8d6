"""Top-1, top-5 and loss over a whole split, exact also when the last batch is padded."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from twins_jax import Params
from twins_jax.preprocess import normalize

from ...step import Batch
from .losses import cross_entropy, smooth_targets

Sums = dict[str, jax.Array]


def make_eval_step(apply: Callable[..., jax.Array], mesh: Mesh) -> Callable[[Params, Batch], Sums]:
    """Makes the jitted step.

    Args:
        apply: `split_model`'s pure function, (params, images) -> logits [B, classes].
        mesh: over which parameters and batches are laid out; every process gets the sums.

    Returns:
        (params, {"image": uint8 [B, H, W, 3], "label": int32 [B], "mask": bool [B]}) -> sums over the rows where the
        mask holds: "top1", "top5" and "examples" int32 [], "loss" float32 [].
    """

    def eval_step(params: Params, batch: Batch) -> Sums:
        logits = apply(params, normalize(batch["image"])).astype(jnp.float32)
        labels, mask = batch["label"], batch["mask"]
        losses = cross_entropy(logits, smooth_targets(labels, logits.shape[-1], 0.0))
        # The rank of the label: how many classes have a larger logit. Of equal logits the first class counts as larger.
        score = jnp.take_along_axis(logits, labels[:, None], axis=-1)
        earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
        rank = ((logits > score) | ((logits == score) & earlier)).sum(axis=-1)
        # A label whose logit is NaN is above nothing and must not count as found.
        found = mask & ~jnp.isnan(score[:, 0])
        return {
            "top1": (found & (rank < 1)).sum(dtype=jnp.int32),
            "top5": (found & (rank < 5)).sum(dtype=jnp.int32),
            "loss": jnp.where(mask, losses, 0.0).sum(),
            "examples": mask.sum(dtype=jnp.int32),
        }

    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, P()))


def evaluate(
    eval_step: Callable[[Params, Batch], Sums], params: Params, batches: Iterable[Batch]
) -> dict[str, float | int]:
    """Evaluates one pass over `batches`.

    Returns:
        "top1" and "top5" as fractions, "loss" as the mean cross-entropy without smoothing, and "examples".
    """
    sums = [eval_step(params, batch) for batch in batches]
    # In float64 on the host: a float32 sum over 50,000 losses would round in the third digit.
    totals = {key: np.sum([np.asarray(part[key], np.float64) for part in sums]) for key in sums[0]}
    examples = int(totals["examples"])
    return {**{key: float(totals[key] / examples) for key in ("top1", "top5", "loss")}, "examples": examples}
