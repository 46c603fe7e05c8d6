"""The architecture of a Twins model, and the published variants as one table."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from twins_jax.errors import InputError

WindowPadding = Literal["zero", "mask"]
AttentionImplementation = Literal["auto", "xla", "pallas", "cudnn"]
StageInts = tuple[int, int, int, int]
"""One integer for each of the four stages."""

MIN_IMAGE_SIZE = 32
"""The four stages reduce an image by 4, 2, 2 and 2: a smaller side would leave the last one empty."""


@dataclasses.dataclass(frozen=True)
class TwinsConfig:
    """Everything that decides which function a Twins backbone computes, except its weights.

    The first group of fields is the architecture (paper, arXiv 2104.13840, sections 3.1 and 3.2, and the appendix's
    configuration tables). The second group holds the choices a caller makes for one use of it.

    Attributes:
        embed_dims: channels C of each stage's map.
        num_heads: attention heads of each stage; each must divide that stage's channels.
        mlp_ratios: hidden width of the MLPs over C.
        depths: blocks in each stage.
        sub_sampling_ratios: side of the square of positions that GSA sums up in one key (1: no sub-sampling).
        window_size: side of LSA's windows, whose blocks alternate with GSA's (Twins-SVT); None: every block is GSA
            (Twins-PCPVT).
        in_channels: channels of the images.
        drop_path_rate: stochastic-depth rate of the last block; it rises linearly over the blocks from 0.
        dropout_rate: dropout after patch embeddings, attention projections and MLP layers.
        window_padding: what LSA does with maps that windows do not tile; see `LocallyGroupedAttention`.
        attention_implementation: what computes the attentions: "xla", the plain formulation; "pallas", fused kernels
            for GPUs (CPUs interpret them, for tests); "cudnn", cuDNN's kernel; "auto", what is fastest where the model
            is traced and applies to it. See `twins_jax.fused.choose`.
        stage_norms: a LayerNorm at the end of each stage, as upstream's dense SVT backbones have; its output is the
            stage's map and the next stage's input.
        dtype: of the computation. Softmax and the statistics of LayerNorm are float32 at least.
        param_dtype: of the parameters.
        remat: recompute each block's activations in the backward pass instead of storing them.

    Raises:
        InputError: (a ValueError) naming the field, what was given and what is allowed.
    """

    embed_dims: StageInts
    num_heads: StageInts
    mlp_ratios: StageInts
    depths: StageInts
    sub_sampling_ratios: StageInts
    window_size: int | None

    in_channels: int = 3
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    window_padding: WindowPadding = "zero"
    attention_implementation: AttentionImplementation = "auto"
    stage_norms: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        for field in ("embed_dims", "num_heads", "mlp_ratios", "depths", "sub_sampling_ratios"):
            values = getattr(self, field)
            if len(values) != 4 or any(value < 1 for value in values):
                raise InputError(f"{field}={values!r}: allowed are four positive integers, one for each stage")
        for dim, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if dim % heads:
                raise InputError(f"num_heads={self.num_heads}: {heads} heads do not divide embed_dims' {dim}")
        if self.window_size is not None and self.window_size < 2:
            raise InputError(f"window_size={self.window_size}: allowed are None and integers from 2")
        if self.in_channels < 1:
            raise InputError(f"in_channels={self.in_channels}: allowed are integers from 1")
        for field in ("drop_path_rate", "dropout_rate"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise InputError(f"{field}={getattr(self, field)}: allowed are rates in [0, 1)")
        if self.window_padding not in get_args(WindowPadding):
            raise InputError(f"window_padding={self.window_padding!r}: allowed are {get_args(WindowPadding)}")
        if self.attention_implementation not in get_args(AttentionImplementation):
            allowed = get_args(AttentionImplementation)
            raise InputError(f"attention_implementation={self.attention_implementation!r}: allowed are {allowed}")
        for field in ("dtype", "param_dtype"):
            if not jnp.issubdtype(getattr(self, field), jnp.floating):
                raise InputError(f"{field}={getattr(self, field)!r}: allowed are floating-point dtypes")

    def is_lsa(self, block: int) -> bool:
        """Whether the block of this index within its stage is LSA: in Twins-SVT, LSA and GSA alternate, LSA first."""
        return self.window_size is not None and block % 2 == 0

    def drop_path_rates(self) -> list[list[float]]:
        """Each block's stochastic-depth rate, by stage: linear over all blocks from 0 to `drop_path_rate`."""
        total = sum(self.depths)
        rates = iter(self.drop_path_rate * i / max(total - 1, 1) for i in range(total))
        return [[next(rates) for _ in range(depth)] for depth in self.depths]


def _pcpvt(depths: StageInts) -> TwinsConfig:
    return TwinsConfig(
        embed_dims=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        mlp_ratios=(8, 8, 4, 4),
        depths=depths,
        sub_sampling_ratios=(8, 4, 2, 1),
        window_size=None,
    )


def _svt(width: int, heads: int, depths: StageInts) -> TwinsConfig:
    return TwinsConfig(
        embed_dims=(width, 2 * width, 4 * width, 8 * width),
        num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
        mlp_ratios=(4, 4, 4, 4),
        depths=depths,
        sub_sampling_ratios=(8, 4, 2, 1),
        window_size=7,
    )


VARIANTS: dict[str, TwinsConfig] = {
    # Paper, appendix, the configuration tables of Twins-PCPVT and Twins-SVT; names are timm's.
    "twins_pcpvt_small": _pcpvt((3, 4, 6, 3)),
    "twins_pcpvt_base": _pcpvt((3, 4, 18, 3)),
    "twins_pcpvt_large": _pcpvt((3, 8, 27, 3)),
    "twins_svt_small": _svt(64, 2, (2, 2, 10, 4)),
    "twins_svt_base": _svt(96, 3, (2, 2, 18, 2)),
    "twins_svt_large": _svt(128, 4, (2, 2, 18, 2)),
    # Not published: ours, for quick tests and for small images such as the embedded digits.
    "twins_svt_tiny": _svt(32, 1, (2, 2, 2, 2)),
}


def variant_config(name: str) -> TwinsConfig:
    """The configuration of a named variant; raises `InputError` (a ValueError) with the allowed names."""
    if name not in VARIANTS:
        raise InputError(f"name={name!r} is not a Twins variant: allowed are {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name]
