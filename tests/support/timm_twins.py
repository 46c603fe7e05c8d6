"""timm's model of any configuration, as truth: `timm.create_model` makes those of the published variants alone."""

from types import ModuleType
from typing import Any

from twins_jax.config import TwinsConfig


def make_timm(timm: ModuleType, config: TwinsConfig, num_classes: int = 10, in_chans: int = 3) -> Any:
    return timm.models.twins.Twins(
        num_classes=num_classes,
        in_chans=in_chans,
        embed_dims=config.embed_dims,
        num_heads=config.num_heads,
        mlp_ratios=config.mlp_ratios,
        depths=config.depths,
        sr_ratios=config.sub_sampling_ratios,
        wss=config.window_size and (config.window_size,) * 4,
    )
