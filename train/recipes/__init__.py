"""Recipes: one function for each result that a command reproduces."""

from collections.abc import Callable

from ..config import RunConfig
from .ade20k import (
    ade20k_fpn_pcpvt_base,
    ade20k_fpn_pcpvt_large,
    ade20k_fpn_pcpvt_small,
    ade20k_fpn_svt_base,
    ade20k_fpn_svt_large,
    ade20k_fpn_svt_small,
    ade20k_upernet_pcpvt_base,
    ade20k_upernet_pcpvt_large,
    ade20k_upernet_pcpvt_small,
    ade20k_upernet_svt_base,
    ade20k_upernet_svt_large,
    ade20k_upernet_svt_small,
)
from .cifar import cifar10
from .coco import (
    coco_mask_rcnn_pcpvt_base_1x,
    coco_mask_rcnn_pcpvt_large_1x,
    coco_mask_rcnn_pcpvt_small_1x,
    coco_mask_rcnn_svt_base_1x,
    coco_mask_rcnn_svt_large_1x,
    coco_mask_rcnn_svt_small_1x,
    coco_retinanet_pcpvt_base_1x,
    coco_retinanet_pcpvt_large_1x,
    coco_retinanet_pcpvt_small_1x,
    coco_retinanet_svt_base_1x,
    coco_retinanet_svt_large_1x,
    coco_retinanet_svt_small_1x,
)
from .detect import detect_folder
from .digits import digits
from .finetune import finetune_384, finetune_folder
from .imagenet import (
    imagenet_pcpvt_base,
    imagenet_pcpvt_large,
    imagenet_pcpvt_small,
    imagenet_svt_base,
    imagenet_svt_large,
    imagenet_svt_small,
)
from .segment import segment_folder

DEFAULT = digits
"""The recipe of `python -m train.main` without a name."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        cifar10,
        imagenet_pcpvt_small,
        imagenet_pcpvt_base,
        imagenet_pcpvt_large,
        imagenet_svt_small,
        imagenet_svt_base,
        imagenet_svt_large,
        finetune_folder,
        finetune_384,
        ade20k_fpn_pcpvt_small,
        ade20k_fpn_pcpvt_base,
        ade20k_fpn_pcpvt_large,
        ade20k_fpn_svt_small,
        ade20k_fpn_svt_base,
        ade20k_fpn_svt_large,
        ade20k_upernet_pcpvt_small,
        ade20k_upernet_pcpvt_base,
        ade20k_upernet_pcpvt_large,
        ade20k_upernet_svt_small,
        ade20k_upernet_svt_base,
        ade20k_upernet_svt_large,
        segment_folder,
        coco_retinanet_pcpvt_small_1x,
        coco_retinanet_pcpvt_base_1x,
        coco_retinanet_pcpvt_large_1x,
        coco_retinanet_svt_small_1x,
        coco_retinanet_svt_base_1x,
        coco_retinanet_svt_large_1x,
        coco_mask_rcnn_pcpvt_small_1x,
        coco_mask_rcnn_pcpvt_base_1x,
        coco_mask_rcnn_pcpvt_large_1x,
        coco_mask_rcnn_svt_small_1x,
        coco_mask_rcnn_svt_base_1x,
        coco_mask_rcnn_svt_large_1x,
        detect_folder,
    )
}
"""The names that `python -m train.main RECIPE` takes."""
