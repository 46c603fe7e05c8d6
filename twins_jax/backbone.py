"""Blocks, stages and the four-stage backbone of Twins-PCPVT and Twins-SVT (paper, figures 1 and 2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention
from twins_jax.config import MIN_IMAGE_SIZE, TwinsConfig
from twins_jax.errors import InputError
from twins_jax.grouping import group_size, in_groups
from twins_jax.layers import LayerNorm, Mlp, PatchEmbed, drop, drop_path
from twins_jax.materialise import materialise_gradient
from twins_jax.peg import PositionalEncodingGenerator

PATCH_SIZES = (4, 2, 2, 2)
"""Side of the patches that each stage embeds; their running products are the strides of the maps: 4, 8, 16, 32."""


class Block(nnx.Module):
    """A pre-norm transformer block whose attention is LSA or GSA: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, stage: int, block: int, *, drop_path_rate: float, config: TwinsConfig, rngs: nnx.Rngs) -> None:
        dim, heads = config.embed_dims[stage], config.num_heads[stage]
        self.norm1 = LayerNorm(dim, epsilon=1e-6, config=config)
        self.attn: LocallyGroupedAttention | GlobalSubSampledAttention
        if config.window_size is not None and config.is_lsa(block):
            self.attn = LocallyGroupedAttention(dim, heads, config.window_size, config=config, rngs=rngs)
        else:
            ratio = config.sub_sampling_ratios[stage]
            self.attn = GlobalSubSampledAttention(dim, heads, ratio, config=config, rngs=rngs)
        self.norm2 = LayerNorm(dim, epsilon=1e-6, config=config)
        self.mlp = Mlp(dim, dim * config.mlp_ratios[stage], config=config, rngs=rngs)
        self.drop_path = drop_path(drop_path_rate)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = materialise_gradient(x + drop(self.drop_path, self.attn(self.norm1(x), rngs), rngs))
        return materialise_gradient(x + drop(self.drop_path, self.mlp(self.norm2(x), rngs), rngs))


class Stage(nnx.Module):
    """Patch embedding, then blocks, with the PEG after the first of them.

    [B, H, W, C_in] -> [B, H // p, W // p, C] for this stage's patch size p.
    """

    def __init__(self, stage: int, *, drop_path_rates: list[float], config: TwinsConfig, rngs: nnx.Rngs) -> None:
        in_channels = config.embed_dims[stage - 1] if stage else config.in_channels
        dim = config.embed_dims[stage]
        self.patch_size = PATCH_SIZES[stage]
        self.patch_embed = PatchEmbed(in_channels, dim, self.patch_size, config=config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate)
        self.blocks = nnx.List(
            Block(stage, block, drop_path_rate=rate, config=config, rngs=rngs)
            for block, rate in enumerate(drop_path_rates)
        )
        self.peg = PositionalEncodingGenerator(dim, config=config, rngs=rngs)
        self.remat = config.remat

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, height, width, _ = x.shape
        # Outside `jit` the loop would be compiled every time, rows on several devices would have to be gathered, and
        # an exported program's batch may be unknown.
        if (
            rngs is not None
            or not isinstance(x, jax.core.Tracer)
            or jax.device_count() > 1
            or not isinstance(batch, int)
        ):
            return self._run(x, rngs)
        size = group_size(batch, (height // self.patch_size) * (width // self.patch_size))
        if size == batch:
            return self._run(x, rngs)
        graph, params = nnx.split(self)
        return in_groups(lambda params, x: nnx.merge(graph, params)._run(x, None), params, x, size)

    def _run(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
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
        config: the architecture and how it is used.
        rngs: `params` stream for the initial parameters.
    """

    def __init__(self, config: TwinsConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stages = nnx.List(
            Stage(stage, drop_path_rates=rates, config=config, rngs=rngs)
            for stage, rates in enumerate(config.drop_path_rates())
        )
        if config.stage_norms:  # upstream's `norm_list` (`extra_norm` in `segmentation/gvt.py` and `detection/gvt.py`)
            self.norms = nnx.List(LayerNorm(dim, epsilon=1e-6, config=config) for dim in config.embed_dims)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Computes the four maps of the pyramid.

        Args:
            images: normalised floats [B, H, W, in_channels], H and W at least 32.
            rngs: `dropout` stream; with it dropout and stochastic depth act, without it the model is deterministic.

        Returns:
            Maps [B, H // s, W // s, C] at strides s = 4, 8, 16 and 32 (rounded down stage by stage) in `config.dtype`,
            each of them what the next stage reads. With `config.stage_norms` a map is normed first.

        Raises:
            InputError: (a ValueError) naming what is wrong with the images.
        """
        _check_images(images, self.config.in_channels)
        x = images.astype(self.config.dtype)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x, rngs)
            if self.config.stage_norms:
                x = self.norms[i](x)
            maps.append(x)
        return tuple(maps)


def _check_images(images: jax.Array, in_channels: int) -> None:
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise InputError(f"images have shape {images.shape}: allowed are [B, H, W, {in_channels}]")
    if min(images.shape[1:3]) < MIN_IMAGE_SIZE:
        raise InputError(f"images have shape {images.shape}: H and W must be at least {MIN_IMAGE_SIZE}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images have dtype {images.dtype}: allowed are normalised floating-point values")
