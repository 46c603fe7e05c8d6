"""The architecture of a Twins model, its options, and the published variants as one table."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypedDict, Unpack, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from twins_jax.errors import did_you_mean, is_integer, is_number, require

WindowPadding = Literal["zero", "mask"]
AttentionImplementation = Literal["auto", "xla", "pallas", "cudnn"]
StageInts = tuple[int, int, int, int]
"""One integer for each of the four stages."""

MIN_IMAGE_SIZE = 32
"""The four stages reduce an image by 4, 2, 2 and 2: a smaller side would leave the last one empty."""

MAX_WIDTH = 2**20
"""Of channels, heads and ratios of the MLPs: no product of them in a kernel's shape overflows JAX's 64 bits."""

MAX_SIDE = 2**10
"""Of windows, of sub-sampling cells, and of the blocks in a stage, which Python makes one by one."""

_STAGE_FIELDS = {
    "embed_dims": MAX_WIDTH,
    "num_heads": MAX_WIDTH,
    "mlp_ratios": MAX_WIDTH,
    "depths": MAX_SIDE,
    "sub_sampling_ratios": MAX_SIDE,
}
"""The fields with an integer for each stage, and the largest."""


class RuntimeOptions(TypedDict, total=False):
    """The options that leave a model's parameters as they are; the defaults are those of `TwinsConfig`.

    Attributes:
        drop_path_rate: stochastic-depth rate of the last block; it rises linearly over the blocks from 0 (paper: 0.2,
            0.3 and 0.5 for small, base and large).
        dropout_rate: dropout after patch embeddings, attention projections and MLP layers (paper: 0).
        window_padding: treatment of maps that LSA's windows do not tile: "zero" as timm and upstream detection, "mask"
            as upstream segmentation; see `LocallyGroupedAttention`.
        attention_implementation: computation of the attentions: "xla", the plain formulation; "pallas", fused kernels
            for GPUs; "cudnn", cuDNN's kernel; "auto", the fastest that applies where the model is traced. One that
            does not apply is an error when the model is called; see `ops.dispatch.choose`.
        dtype: of the computation. Softmax and the statistics of norms are float32 at least.
        remat: recompute each block's activations in the backward pass instead of storing them.
    """

    drop_path_rate: float
    dropout_rate: float
    window_padding: WindowPadding
    attention_implementation: AttentionImplementation
    dtype: DTypeLike
    remat: bool


class TwinsOptions(RuntimeOptions, total=False):
    """The options of a model: those of `RuntimeOptions`, and three that decide which parameters it has.

    Attributes:
        in_channels: channels of the images.
        stage_norms: a LayerNorm at the end of each stage of a backbone, whose output is the stage's map and the next
            stage's input, as in upstream's dense SVT.
        param_dtype: of the parameters.
    """

    in_channels: int
    stage_norms: bool
    param_dtype: DTypeLike


class DTypes(TypedDict):
    """The dtypes that every layer takes."""

    dtype: DTypeLike
    param_dtype: DTypeLike


@dataclasses.dataclass(frozen=True)
class TwinsConfig:
    """The function that a Twins backbone computes, except for its weights.

    The first fields are the architecture (paper, arXiv 2104.13840, sections 3.1 and 3.2, and the appendix's
    configuration tables). The others are the options that `TwinsOptions` lists.

    Attributes:
        embed_dims: channels C of each stage's map.
        num_heads: attention heads of each stage; each must divide that stage's channels.
        mlp_ratios: hidden width of the MLPs over C.
        depths: blocks in each stage.
        sub_sampling_ratios: side of the square of positions that GSA sums up in one key (1: no sub-sampling).
        window_size: side of LSA's windows, whose blocks alternate with GSA's (Twins-SVT); None: every block is GSA
            (Twins-PCPVT).

    Raises:
        InputError: (a ValueError) naming the field, its value and what it must be.
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
        for field, most in _STAGE_FIELDS.items():
            values = getattr(self, field)
            are_four = isinstance(values, (tuple, list)) and len(values) == 4
            is_right = are_four and all(is_integer(value, 1, most) for value in values)
            require(field, values, is_right, f"four positive integers up to {most}, one for each stage")
            self._set(field, tuple(map(int, values)))
        divide = all(dim % heads == 0 for dim, heads in zip(self.embed_dims, self.num_heads, strict=True))
        require("num_heads", self.num_heads, divide, f"divisors of embed_dims, {self.embed_dims}")
        if self.window_size is not None:
            is_side = is_integer(self.window_size, 2, MAX_SIDE)
            require("window_size", self.window_size, is_side, f"None or an integer from 2 to {MAX_SIDE}")
            self._set("window_size", int(self.window_size))
        is_width = is_integer(self.in_channels, 1, MAX_WIDTH)
        require("in_channels", self.in_channels, is_width, f"an integer from 1 to {MAX_WIDTH}")
        self._set("in_channels", int(self.in_channels))
        for field in ("drop_path_rate", "dropout_rate"):
            rate = getattr(self, field)
            require(field, rate, is_number(rate) and 0.0 <= rate < 1.0, "a rate in [0, 1)")
            self._set(field, float(rate))
        for field, allowed in (
            ("window_padding", get_args(WindowPadding)),
            ("attention_implementation", get_args(AttentionImplementation)),
        ):
            value = getattr(self, field)
            require(field, value, isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}")
        for field in ("stage_norms", "remat"):
            value = getattr(self, field)
            require(field, value, isinstance(value, (bool, np.bool_)), "True or False")
            self._set(field, bool(value))
        for field in ("dtype", "param_dtype"):
            require(field, getattr(self, field), _is_floating(getattr(self, field)), "a floating-point dtype")

    def _set(self, field: str, value: object) -> None:
        """Replaces a value by the same in Python's own type: NumPy's numbers would take part in rules for dtypes."""
        object.__setattr__(self, field, value)

    @property
    def dtypes(self) -> DTypes:
        """Both dtypes, as a layer's keyword arguments."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def is_lsa(self, block: int) -> bool:
        """True if the block at this index of its stage is LSA: in Twins-SVT, LSA and GSA alternate, LSA first."""
        return self.window_size is not None and block % 2 == 0

    def drop_path_rates(self) -> list[list[float]]:
        """Each block's stochastic-depth rate, by stage: linear over all blocks from 0 to `drop_path_rate`."""
        total = sum(self.depths)
        rates = iter(self.drop_path_rate * i / max(total - 1, 1) for i in range(total))
        return [[next(rates) for _ in range(depth)] for depth in self.depths]


def check_config(config: TwinsConfig) -> None:
    """Raises InputError unless a model's `config` is one."""
    require(
        "config", config, isinstance(config, TwinsConfig), "a TwinsConfig; create_model takes a variant by its name"
    )


def check_options(options: Mapping[str, object], *arguments: str) -> None:
    """Raises InputError for a keyword that is no option of a model, and names the nearest that is known.

    Args:
        options: the keywords given, with their values.
        *arguments: what the function called takes beside the options.
    """
    known = sorted(TwinsOptions.__annotations__)
    for option, value in options.items():
        similar = did_you_mean(option, [*known, *arguments])
        allowed = f"left out, it is no option; the options are {', '.join(known)}{similar}"
        require(option, value, option in known, allowed)


def _is_floating(dtype: DTypeLike) -> bool:
    try:
        found = jnp.dtype(dtype)
        # JAX has no extended precision.
        return dtype is not None and jnp.issubdtype(found, jnp.floating) and found.itemsize <= 8
    except TypeError:  # no dtype at all
        return False


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


def variant_config(name: str, **options: Unpack[TwinsOptions]) -> TwinsConfig:
    """Returns the configuration of a named variant, with options.

    Args:
        name: one of `VARIANTS`.
        **options: see `TwinsOptions`.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be. For an unknown variant it lists
            all names; for an unknown option, and for a field of the architecture, all options.
    """
    names = sorted(VARIANTS)
    allowed = f"one of {', '.join(names)}{did_you_mean(name, names)}"
    require("name", name, isinstance(name, str) and name in VARIANTS, allowed)
    check_options(options)
    return dataclasses.replace(VARIANTS[name], **options)
