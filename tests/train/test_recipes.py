"""The recipes against the published settings, spelled out here: paper, section 4.1, and upstream's script."""

import dataclasses
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


def test_every_published_variant_has_a_recipe() -> None:
    models = {RECIPES[name]().model["name"] for name in PUBLISHED}
    assert models == set(twins_jax.list_models()) - {"twins_svt_tiny"}


def test_names() -> None:
    assert set(RECIPES) == {*PUBLISHED, "digits", "cifar10", "finetune_folder", "finetune_384"}
    assert DEFAULT is digits


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipe(recipe: Callable[[], RunConfig]) -> None:
    config = recipe()
    assert config.workdir == f"runs/{recipe.__name__}"
    assert config.data.image_size >= 32
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
