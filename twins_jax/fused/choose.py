"""Which implementation computes an attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from twins_jax.config import AttentionImplementation
from twins_jax.errors import InputError

Implementation = Literal["xla", "pallas", "cudnn"]

AUTO_ON_GPU: Implementation = "xla"
"""What "auto" means on GPUs, where it applies. The kernels have not run on one yet: until `python -m train.benchmark
--device cuda --attention_implementation pallas` (and xla, cudnn) says which is fastest there, the proven one."""

HEAD_DIMS = (16, 32, 64)
"""Triton multiplies tiles whose sides are powers of two, from 16; with wider heads the kernels run out of registers."""

MAX_WINDOW_SIZE = 8
"""Side of the largest window whose positions fit the kernels' tile."""


def choose(
    requested: AttentionImplementation,
    dtype: DTypeLike,
    head_dim: int,
    *,
    window_size: int = 1,
    masks_padding: bool = False,
) -> Implementation:
    """The implementation of one attention.

    The platform is the default backend's, known when the model is traced: a program that is lowered for another one
    gets what "auto" means here, which is portable on CPUs and TPUs. `jax.lax.platform_dependent` would decide when
    lowering, but trace and differentiate every implementation each time.

    Args:
        requested: as in `TwinsConfig`.
        dtype: of query, key and value.
        head_dim: channels of a head.
        window_size: side of LSA's windows.
        masks_padding: whether some pairs of positions in a window do not see each other.

    Raises:
        InputError: the implementation asked for does not apply. "auto" never raises.
    """
    if requested == "auto":
        wanted = AUTO_ON_GPU if jax.default_backend() == "gpu" else "xla"
        return "xla" if _objection(wanted, dtype, head_dim, window_size, masks_padding) else wanted
    if objection := _objection(requested, dtype, head_dim, window_size, masks_padding):
        raise InputError(f"attention_implementation={requested!r}: {objection}")
    return requested


def _objection(
    wanted: Implementation, dtype: DTypeLike, head_dim: int, window_size: int, masks_padding: bool
) -> str | None:
    """Why an implementation does not apply, or None."""
    name, platform = jnp.dtype(dtype).name, jax.default_backend()
    if wanted == "pallas":
        if platform not in ("gpu", "cpu"):
            return f"found the platform {platform}; allowed are GPUs, and CPUs, which interpret the kernels"
        if name not in ("float32", "bfloat16", "float16"):
            return f"found dtype {name}; allowed are float32, bfloat16 and float16"
        if head_dim not in HEAD_DIMS:
            return f"found heads of {head_dim} channels; allowed are {', '.join(map(str, HEAD_DIMS))}"
        if window_size > MAX_WINDOW_SIZE:
            return f"found window_size={window_size}; allowed are sizes up to {MAX_WINDOW_SIZE}"
    if wanted == "cudnn":
        if platform != "gpu":
            return f"found the platform {platform}; allowed are CUDA GPUs"
        if name not in ("bfloat16", "float16"):
            return f"found dtype {name}; allowed are bfloat16 and float16"
        if head_dim % 8 or head_dim > 128:
            return f"found heads of {head_dim} channels; allowed are multiples of 8 up to 128"
        if masks_padding:  # its gradients with a bias need an even number of keys, and a window has 49
            return "found window_padding='mask' on a map that both ways needs padding; allowed is 'zero'"
    return None
