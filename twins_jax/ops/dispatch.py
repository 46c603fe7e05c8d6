"""The choice between implementations of attention."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from twins_jax.config import AttentionImplementation
from twins_jax.errors import require
from twins_jax.ops.numerics import at_least_float32

Implementation = Literal["xla", "pallas", "cudnn"]

AUTO_ON_GPU: Implementation = "xla"
"""The meaning of "auto" on GPUs, where it applies: the plain formulation, until `python -m train.benchmark --device
cuda --attention_implementation pallas` (and xla, cudnn) shows on a GPU that another one is faster."""

PORTABLE: Implementation = "xla"
"""The one that every platform has: programs that are lowered for several take it."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms, by the names of `jax.export`, that such a program is lowered for."""

HEAD_DIMS = (16, 32, 64)
"""Triton multiplies tiles whose sides are powers of two, from 16; with wider heads the kernels run out of registers."""

MAX_WINDOW_SIZE = 8
"""Side of the largest window whose positions fit the kernels' tile."""

BLOCK_SCORES = 2**24
"""Most bytes of scores, those of all heads of one image, that the plain formulation holds: 16 MiB. More are computed in
blocks, and in training once more. The times below decided it; on accelerators it saves memory, at an unknown price.

Images of 224x224 have at most 2.3 MiB in a layer, those of 1024x1024 up to 1 GiB. Blocks save time, too: glibc returns
arrays above 32 MiB to the system, which clears their pages anew for the next ones. CPU time of one GSA, at once and in
blocks, by `tests/scripts/large_images.py --stage` (two cores of an AMD EPYC, jaxlib 0.10.2, float32):

- Second stage of SVT-S, 1024x1024: 0.40 and 0.19 s, with gradients 1.27 and 0.83; in blocks of 32 MiB 0.42 and 1.12.
- First stage of SVT-S, gradients of eight images of 448x448: 0.64 and 0.59 s, with two thirds of the memory.
"""


def choose(
    requested: AttentionImplementation,
    dtype: DTypeLike,
    head_dim: int,
    *,
    window_size: int = 1,
    masks_padding: bool = False,
) -> Implementation:
    """Chooses the implementation of one attention.

    The platform is the default backend's, known when the model is traced. "auto" means the portable formulation on
    every platform but GPUs. `jax.lax.platform_dependent` would choose when XLA lowers the program for a platform, but
    would trace and differentiate every implementation each time.

    Args:
        requested: as in `TwinsConfig`.
        dtype: of query, key and value.
        head_dim: channels of a head.
        window_size: side of LSA's windows.
        masks_padding: True if some pairs of positions in a window do not see each other.

    Raises:
        InputError: the requested implementation does not apply. "auto" never raises.
    """
    if requested == "auto":
        wanted = AUTO_ON_GPU if jax.default_backend() == "gpu" else "xla"
        return "xla" if _unmet(wanted, dtype, head_dim, window_size, masks_padding) else wanted
    unmet = _unmet(requested, dtype, head_dim, window_size, masks_padding)
    require("attention_implementation", requested, not unmet, unmet)
    return requested


def queries_at_once(queries: int, keys: int, num_heads: int, dtype: DTypeLike) -> int:
    """Queries in a block: `queries` divided evenly among the fewest blocks whose scores fit in `BLOCK_SCORES`.

    The batch takes no part. A device does not know its share of one when the program is traced, and a result must not
    depend on the number of devices.

    Args:
        queries: of one image.
        keys: of one image.
        num_heads: heads.
        dtype: of the queries.

    Returns:
        `queries`, for no blocks, up to `BLOCK_SCORES`, and where a size is unknown, as in a program exported for any.
    """
    scores = queries * keys * num_heads * jnp.dtype(at_least_float32(dtype)).itemsize
    if not isinstance(scores, int) or scores <= BLOCK_SCORES:
        return queries
    most = max(BLOCK_SCORES * queries // scores, 1)
    return math.ceil(queries / math.ceil(queries / most))


def _unmet(wanted: Implementation, dtype: DTypeLike, head_dim: int, window_size: int, masks_padding: bool) -> str:
    """The condition that an implementation must meet and does not, with what was found; "" where it applies."""
    name, platform = jnp.dtype(dtype).name, jax.default_backend()
    if wanted == "pallas":
        if platform == "tpu":
            return "used on GPUs, or interpreted for tests: found the platform tpu"
        if name not in ("float32", "bfloat16", "float16"):
            return f"given float32, bfloat16 or float16: found dtype={name}"
        if head_dim not in HEAD_DIMS:
            return f"given heads of {', '.join(map(str, HEAD_DIMS))} channels: found {head_dim}"
        if window_size > MAX_WINDOW_SIZE:
            return f"given windows of up to {MAX_WINDOW_SIZE}: found window_size={window_size}"
    if wanted == "cudnn":
        if platform != "gpu":
            return f"used on CUDA GPUs: found the platform {platform}"
        if name not in ("bfloat16", "float16"):
            return f"given bfloat16 or float16: found dtype={name}"
        if head_dim % 8 or head_dim > 128:
            return f"given heads of a multiple of 8 channels, up to 128: found {head_dim}"
        if masks_padding:  # its gradients with a bias need an even number of keys, and a window has 49
            return "given window_padding='zero' where a map needs padding both ways: found 'mask'"
    return ""
