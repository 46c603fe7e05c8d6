"""Blocks, stages and the four-stage backbone of Twins-PCPVT and Twins-SVT (paper, figures 1 and 2)."""

import os

import jax
from flax import nnx

from twins_jax import ops
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.config import TwinsConfig, check_config
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


class Stage(nnx.Module):
    """Patch embedding, then blocks, with the PEG after the first of them.

    [B, H, W, C_in] -> [B, H // p, W // p, C] for this stage's patch size p.
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

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        run_block = nnx.remat(Block.__call__) if self.remat else Block.__call__
        x = drop(self.dropout, self.patch_embed(x), rngs)
        for i, block in enumerate(self.blocks):
            x = run_block(block, x, rngs)
            if i == 0:
                x = self.peg(x)
        return x


class TwinsBackbone(nnx.Module):
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
        if rngs is not None:
            check_rngs(rngs, "dropout")
        x = check_images(images, self.config.in_channels).astype(self.config.dtype)
        maps = []
        for i, stage in enumerate(self.stages):
            x = ops.by_image(stage, x, rngs, stride=stage.patch_size)
            if self.config.stage_norms:
                x = self.norms[i](x)
            maps.append(x)
        return tuple(maps)

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Saves the model; arguments and errors are those of `twins_jax.save_pretrained`."""
        from twins_jax.pretrained import save_pretrained  # late: it imports this file

        save_pretrained(self, folder, overwrite=overwrite)
