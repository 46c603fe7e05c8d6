"""The recipes against the published settings, spelled out here: paper, section 4.1, and upstream's script."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

import twins_jax
from train.config import RunConfig
from train.recipes import DEFAULT, RECIPES, cifar10, digits, finetune_384, finetune_folder, imagenet_svt_small
from train.recipes.imagenet import EPOCH, TRAIN_EXAMPLES

# Drop-path rates: 0.2 / 0.3 / 0.5 for S / B / L. Top-1: the paper's table.
PUBLISHED = {
    "imagenet_pcpvt_small": ("twins_pcpvt_small", 0.2, 81.2),
    "imagenet_pcpvt_base": ("twins_pcpvt_base", 0.3, 82.7),
    "imagenet_pcpvt_large": ("twins_pcpvt_large", 0.5, 83.1),
    "imagenet_svt_small": ("twins_svt_small", 0.2, 81.7),
    "imagenet_svt_base": ("twins_svt_base", 0.3, 83.2),
    "imagenet_svt_large": ("twins_svt_large", 0.5, 83.7),
}

# Drop-path rate, batch and mIoU: upstream's configurations and logs; of Semantic FPN mmseg 1.x's, single scale.
ADE20K = {
    "fpn_pcpvt_small": (0.2, 32, 43.26),
    "fpn_pcpvt_base": (0.2, 32, 45.66),
    "fpn_pcpvt_large": (0.2, 32, 45.94),
    "fpn_svt_small": (0.2, 32, 44.47),
    "fpn_svt_base": (0.2, 32, 46.77),
    "fpn_svt_large": (0.3, 32, 46.55),
    "upernet_pcpvt_small": (0.2, 32, 46.21),
    "upernet_pcpvt_base": (0.2, 16, 47.78),
    "upernet_pcpvt_large": (0.2, 16, 48.59),
    "upernet_svt_small": (0.2, 16, 46.24),
    "upernet_svt_base": (0.2, 16, 47.69),
    "upernet_svt_large": (0.3, 16, 48.77),
}

# Every value of a run that the six share. A value that the publication leaves open is marked "ours".
IMAGENET = {
    "model": {
        "dropout_rate": 0.0,
        "window_padding": "zero",  # at 224 no map needs any
        "attention_implementation": "auto",  # ours
        "dtype": "bfloat16",  # mixed precision
        "remat": False,  # ours: changes memory, not the result
    },
    "data": {
        "source": "imagenet2012",
        "dir": "",  # ours
        "label_column": "",
        "multi_label": False,
        "image_size": 224,
        "crop_scale": (0.08, 1.0),  # timm's random resized crop
        "crop_ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "rand_augment_layers": 2,  # rand-m9-mstd0.5-inc1
        "rand_augment_magnitude": 9.0,
        "rand_augment_std": 0.5,
        "repeated_augmentation": 1,  # none
        "eval_crop": 0.875,  # resize 256, center crop 224
        "threads": 8,  # ours
        "workers": 8,  # ours
        "on_error": "stop",  # ours
        "max_errors": 0.01,  # ours
    },
    "mix": {
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "switch_probability": 0.5,
        "probability": 1.0,
        "erase_probability": 0.25,  # "pixel" mode, the only one
    },
    "loss": "auto",  # cross-entropy
    "label_smoothing": 0.1,
    "optim": {
        "learning_rate": 5e-4,  # x batch / 512
        "warmup_learning_rate": 1e-6,
        "min_learning_rate": 1e-5,
        "warmup_epochs": 5,
        "weight_decay": 0.05,
        "clip_norm": 5.0,
        "layer_decay": 1.0,  # none
        "accumulate": 1,  # ours: changes memory, not the result
        "ema_decay": 0.0,  # no EMA
    },
    "epochs": 300,
    "steps": None,
    "batch_size": 1024,
    # Ours, from here on: no influence on the weights, or no published value.
    "checkpoint": {"every_steps": 1251, "keep": 2},
    "eval_batch_size": 1024,
    "eval_every_steps": 1251,
    "log_every_steps": 50,
    "seed": 0,
    "compilation_cache": "",
    "fsdp": 1,
    "init": "",
    "allow_changes": False,
    "eval_only": False,
    "report": False,
    "profile": False,
    "distributed": {"mode": "auto", "coordinator": "", "processes": 1, "process_id": 0, "timeout_seconds": 100},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_recipe_is_the_published_one(name: str) -> None:
    variant, drop_path_rate, _ = PUBLISHED[name]
    expected: dict[str, Any] = IMAGENET | {"workdir": f"runs/{name}"}
    expected["model"] = IMAGENET["model"] | {"name": variant, "drop_path_rate": drop_path_rate}  # type: ignore[operator]
    assert dataclasses.asdict(RECIPES[name]()) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_docstring_gives_command_and_figure(name: str) -> None:
    doc = RECIPES[name].__doc__ or ""
    assert f"published top-1 {PUBLISHED[name][2]} " in doc
    assert f"python -m train.main {name} --data.dir DIR" in doc


def test_imagenet_epoch() -> None:
    assert TRAIN_EXAMPLES == 1_281_167  # the training split of ILSVRC 2012
    assert EPOCH == 1251
    config = imagenet_svt_small()
    total = config.total_steps(TRAIN_EXAMPLES)
    assert total == round(300 * 1_281_167 / 1024)
    warmup = config.optim.warmup_steps(batch_size=1024, total_steps=total, train_examples=TRAIN_EXAMPLES)
    assert warmup == round(5 * 1_281_167 / 1024)


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k_recipe_is_the_published_one(name: str) -> None:
    drop_path_rate, batch_size, miou = ADE20K[name]
    config, is_fpn = RECIPES[f"ade20k_{name}"](), name.startswith("fpn")
    options = {"drop_path_rate": drop_path_rate, "window_padding": "mask", "dtype": "float32"}
    assert config.model == config.model | options | {"name": f"twins_{name.partition('_')[2]}"}
    found = {
        name: value for name, value in dataclasses.asdict(config).items() if name in ("head", "steps", "batch_size")
    }
    expected = {"head": "semantic_fpn" if is_fpn else "upernet", "steps": 80_000 if is_fpn else 160_000}
    assert found == expected | {"batch_size": batch_size}
    published: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 1e-4, "power": 0.9, "min_learning_rate": 1e-6}
    published |= {"warmup_steps": 0, "decay": "all"}
    if not is_fpn:
        published = {"learning_rate": 6e-5, "weight_decay": 0.01, "power": 1.0, "min_learning_rate": 0.0}
        published |= {"warmup_steps": 1500, "warmup_ratio": 1e-6, "decay": "no_norm"}
    assert vars(config.optim) == vars(config.optim) | published | {"clip_norm": math.inf}
    data: dict[str, Any] = {"source": "ade20k", "crop_size": 512, "shorter": 512, "longer": 2048, "scale": (0.5, 2.0)}
    data |= {"cat_max_ratio": 0.75, "flip": 0.5, "photometric": True, "eval_scales": (1.0,), "eval_multiple": 1}
    assert vars(config.data) == vars(config.data) | data
    assert f"published mIoU {miou:.2f} " in (RECIPES[f"ade20k_{name}"].__doc__ or "")


def test_every_published_variant_has_a_recipe() -> None:
    models = {RECIPES[name]().model["name"] for name in PUBLISHED}
    assert models == set(twins_jax.list_models()) - {"twins_svt_tiny"}


def test_names() -> None:
    others = {"digits", "cifar10", "finetune_folder", "finetune_384", "segment_folder", "detect_folder"}
    variants = [name.removeprefix("imagenet_") for name in PUBLISHED]
    coco = {f"coco_{head}_{variant}_1x" for head in ("retinanet", "mask_rcnn") for variant in variants}
    assert set(RECIPES) == {*PUBLISHED, *(f"ade20k_{name}" for name in ADE20K), *coco, *others}
    assert DEFAULT is digits


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe(recipe: Callable[[], RunConfig]) -> None:
    config = recipe()
    assert config.workdir == f"runs/{recipe.__name__}"
    assert getattr(config.data, "image_size", 32) >= 32
    # The command stands in the docstring; that of the default has no recipe's name in it.
    name = "" if recipe is DEFAULT else f" {recipe.__name__}"
    assert f"python -m train.main{name}" in (recipe.__doc__ or "")


def test_small_image_recipes_use_the_tiny_model() -> None:
    for recipe, source in ((digits, "digits"), (cifar10, "folder")):
        config = recipe()
        assert (config.model["name"], config.data.source, config.data.image_size) == ("twins_svt_tiny", source, 32)
    assert digits().data.flip == 0  # a mirrored digit is another sign


def test_fine_tuning_recipes() -> None:
    assert finetune_folder().optim.layer_decay < 1
    assert finetune_384().data.image_size == 384
    for recipe in (finetune_folder, finetune_384):
        assert "--init CHECKPOINT" in (recipe.__doc__ or "")
