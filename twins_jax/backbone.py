"""Blocks, stages and the four-stage backbone of Twins-PCPVT and Twins-SVT (paper, figures 1 and 2)."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.base import SavedModel
from twins_jax.config import TwinsConfig, check_config
from twins_jax.errors import is_integer, require
from twins_jax.inputs import check_images
from twins_jax.layers import LayerNorm, Mlp, PatchEmbed, check_rngs, drop, drop_path
from twins_jax.peg import PositionalEncodingGenerator

PATCH_SIZES = (4, 2, 2, 2)
"""Side of the patches that each stage embeds; their running products are the strides of the maps: 4, 8, 16, 32."""


class Block(nnx.Module):
    """A pre-norm transformer block whose attention is LSA or GSA: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, stage: int, block: int, *, drop_path_rate: float, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        dim, heads, hidden = config.embed_dims[stage], config.num_heads[stage], config.mlp_ratios[stage]
        self.norm1 = LayerNorm(dim, epsilon=1e-6, **config.dtypes)
        self.attn: LocallyGroupedAttention | GlobalSubSampledAttention
        if config.window_size is not None and config.is_lsa(block):
            self.attn = LocallyGroupedAttention(dim, heads, config.window_size, config=config, rngs=rngs)
        else:
            ratio = config.sub_sampling_ratios[stage]
            self.attn = GlobalSubSampledAttention(dim, heads, ratio, config=config, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=1e-6, **config.dtypes)
        self.mlp = Mlp(dim, dim * hidden, dropout_rate=config.dropout_rate, **config.dtypes, rngs=rngs)
        self.drop_path = drop_path(drop_path_rate)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = ops.residual_add(x, drop(self.drop_path, self.attn(self.norm1(x), rngs), rngs))
        return ops.residual_add(x, drop(self.drop_path, self.mlp(self.norm2(x), rngs), rngs))


Observe: TypeAlias = Callable[[Block, jax.Array, jax.Array], None]
"""Sees a block, its input and its output, both [B, H, W, C]."""


class Stage(nnx.Module):
    """Patch embedding, then blocks, with the PEG after the first of them.

    [B, H, W, C_in] -> [B, H // p, W // p, C] for this stage's patch size p. `observe` sees every block.
    """

    def __init__(self, stage: int, *, drop_path_rates: list[float], config: TwinsConfig, rngs: nnx.Rngs) -> None:
        in_channels = config.embed_dims[stage - 1] if stage else config.in_channels
        dim = config.embed_dims[stage]
        self.patch_size = PATCH_SIZES[stage]
        self.patch_embed = PatchEmbed(in_channels, dim, self.patch_size, **config.dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.blocks = nnx.List(
            Block(stage, block, drop_path_rate=rate, config=config, rngs=rngs)
            for block, rate in enumerate(drop_path_rates)
        )
        self.peg = PositionalEncodingGenerator(dim, **config.dtypes, rngs=rngs)
        self.remat = config.remat

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, observe: Observe | None = None) -> jax.Array:
        run_block = nnx.remat(Block.__call__) if self.remat else Block.__call__
        x = drop(self.dropout, self.patch_embed(x), rngs)
        for i, block in enumerate(self.blocks):
            before, x = x, run_block(block, x, rngs)
            if observe:
                observe(block, before, x)
            if i == 0:
                x = self.peg(x)
        return x


class FeatureInfo(NamedTuple):
    """A map of the pyramid, for those who build on it.

    Attributes:
        channels: C of the map [B, H, W, C].
        stride: pixels of the image in one position of the map, both ways.
        last_block: index, over the blocks of all stages, of the stage's last one.
    """

    channels: int
    stride: int
    last_block: int


class TwinsBackbone(SavedModel):
    """The feature pyramid of a Twins model.

    Args:
        config: the architecture and its options.
        rngs: `params` stream for the initial parameters.

    Raises:
        InputError: (a ValueError) naming the argument, its value and what it must be.
    """

    def __init__(self, config: TwinsConfig, *, rngs: nnx.Rngs) -> None:
        check_config(config)
        check_rngs(rngs, "params")
        self.config = config
        self.stages = nnx.List(
            Stage(stage, drop_path_rates=rates, config=config, rngs=rngs)
            for stage, rates in enumerate(config.drop_path_rates())
        )
        if config.stage_norms:
            self.norms = nnx.List(LayerNorm(dim, epsilon=1e-6, **config.dtypes) for dim in config.embed_dims)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Computes the four maps of the pyramid.

        Args:
            images: normalized floats [B, H, W, in_channels], H and W at least 32.
            rngs: `dropout` stream; with it dropout and stochastic depth act, without it the model is deterministic.

        Returns:
            Maps [B, H // s, W // s, C] at strides s = 4, 8, 16 and 32 (rounded down stage by stage) in `config.dtype`.
            With `stage_norms` a map is normed, and the next stage reads the normed map.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """

        def run(stage: Stage, x: jax.Array) -> jax.Array:
            return ops.by_image(stage, x, rngs, stride=stage.patch_size)

        return tuple(self._maps(images, rngs, run))

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """The four maps that a call returns, in order."""
        strides = itertools.accumulate(PATCH_SIZES, lambda stride, size: stride * size)
        ends = itertools.accumulate(self.config.depths)
        return tuple(
            FeatureInfo(channels, stride, end - 1)
            for channels, stride, end in zip(self.config.embed_dims, strides, ends, strict=True)
        )

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return self.config.embed_dims[-1]

    def intermediates(
        self, images: jax.Array, blocks: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, ...]:
        """Computes the outputs of blocks within the stages; a call gives the ends of the stages.

        The output of a stage's first block is the map before the PEG. timm's `forward_intermediates` counts stages
        instead of blocks.

        Args:
            images: as for a call.
            blocks: indices over the blocks of all stages, from 0; negative ones count from the end. None: all blocks.
            rngs: as for a call.

        Returns:
            A map [B, H // s, W // s, C] for each index, in the order of `blocks`, at the stride s and with the channels
            C of the block's stage. Stages after the last of these blocks are not computed.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images, or an index.
        """
        total = sum(self.config.depths)
        indices = range(total) if blocks is None else blocks
        is_sequence = isinstance(indices, Sequence) and len(indices) > 0
        are_indices = is_sequence and all(is_integer(index, -total, total - 1) for index in indices)
        require("blocks", blocks, are_indices, f"None or a sequence of indices from {-total} to {total - 1}")
        indices = [int(index) % total for index in indices]
        outputs: list[jax.Array] = []
        self.observe_blocks(images, lambda *seen: outputs.append(seen[-1]), last=max(indices), rngs=rngs)
        return tuple(outputs[index] for index in indices)

    def observe_blocks(self, images: jax.Array, observe: Observe, *, last: int, rngs: nnx.Rngs | None = None) -> None:
        """Shows `observe` one block after the other, up to the end of the stage that has the block `last`.

        Args:
            images: as for a call.
            observe: called for each block.
            last: index over the blocks of all stages, from 0.
            rngs: as for a call.
        """

        def run(stage: Stage, x: jax.Array) -> jax.Array:
            return stage(x, rngs, observe)

        for info, _ in zip(self.feature_info, self._maps(images, rngs, run), strict=True):
            if info.last_block >= last:
                break

    def _maps(
        self, images: jax.Array, rngs: nnx.Rngs | None, run: Callable[[Stage, jax.Array], jax.Array]
    ) -> Iterator[jax.Array]:
        """Computes one stage after the other, as each map is asked for."""
        if rngs is not None:
            check_rngs(rngs, "dropout")
        x = check_images(images, self.config.in_channels).astype(self.config.dtype)
        for i, stage in enumerate(self.stages):
            x = run(stage, x)
            if self.config.stage_norms:
                x = self.norms[i](x)
            yield x
