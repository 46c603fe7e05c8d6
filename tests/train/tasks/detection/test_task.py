"""The learning rate, the shapes of batches, and the recipes against the published settings, spelled out here."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="needs the extra `detection`")

from tests.support.detection import ARGUMENTS, CLASSES, LEARNED_IMAGES, SIZES, make_folder
from train.main import parse
from train.recipes import RECIPES, coco_mask_rcnn_svt_small_1x, coco_retinanet_svt_small_1x, detect_folder
from train.recipes.coco import EPOCH, TRAIN_EXAMPLES
from train.task import DatasetInfo
from train.tasks.detection.config import DetectionOptimConfig
from twins_jax import InputError
from twins_jax.preprocess import normalize

FLOAT32 = 1e-6

# Box AP, and mask AP of Mask R-CNN: the paper's table.
PUBLISHED = {
    "retinanet_pcpvt_small": (43.0,),
    "retinanet_pcpvt_base": (44.3,),
    "retinanet_pcpvt_large": (45.1,),
    "retinanet_svt_small": (43.0,),
    "retinanet_svt_base": (45.3,),
    "retinanet_svt_large": (45.7,),
    "mask_rcnn_pcpvt_small": (42.9, 40.0),
    "mask_rcnn_pcpvt_base": (44.6, 40.9),
    "mask_rcnn_pcpvt_large": (45.4, 41.5),
    "mask_rcnn_svt_small": (43.4, 40.3),
    "mask_rcnn_svt_base": (45.2, 41.5),
    "mask_rcnn_svt_large": (45.9, 41.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name: str) -> None:
    head, _, variant = name.replace("mask_rcnn", "mask-rcnn").partition("_")
    head = head.replace("-", "_")
    config = RECIPES[f"coco_{name}_1x"]()
    options = {"name": f"twins_{variant}", "drop_path_rate": 0.2, "window_padding": "zero", "dtype": "float32"}
    assert config.model == config.model | options
    own: dict[str, Any] = {"head": head, "group_size": 2, "box_samples": 512, "epochs": 12, "steps": None}
    own["batch_size"] = 16
    assert vars(config) == vars(config) | own
    optim = {"learning_rate": 1e-4 if head == "retinanet" else 2e-4, "weight_decay": 1e-4, "clip_norm": math.inf}
    assert vars(config.optim) == vars(config.optim) | optim
    data = {"source": "coco", "shorter": 800, "longer": 1333, "flip": 0.5, "multi_scale": False}
    assert vars(config.data) == vars(config.data) | data
    doc = RECIPES[f"coco_{name}_1x"].__doc__ or ""
    figures = " AP {}, mask AP {} " if head == "mask_rcnn" else " AP {} "
    assert f"published box{figures.format(*PUBLISHED[name])}(" in doc
    assert f"python -m train.main coco_{name}_1x --data.dir DIR" in doc


def of_mmcv(base: float, step: int) -> float:
    """`StepLrUpdaterHook` with `step=[8, 11]` and a linear warm-up of 500 iterations from 0.001, of mmcv 1.2.5."""
    epoch = step // EPOCH
    regular = base * 0.1 ** ((epoch >= 8) + (epoch >= 11))
    return regular * (1 - (1 - step / 500) * (1 - 0.001)) if step < 500 else regular


@pytest.mark.parametrize("recipe", [coco_retinanet_svt_small_1x, coco_mask_rcnn_svt_small_1x])
def test_schedule_is_mmcvs(recipe: Any) -> None:
    assert EPOCH == 7330  # of mmdet's logs
    config = recipe()
    total = 12 * EPOCH
    assert abs(config.total_steps(TRAIN_EXAMPLES) - total) < 12
    schedule = config.optim.make_schedule(batch_size=16, total_steps=total, train_examples=TRAIN_EXAMPLES)
    steps = [0, 1, 250, 499, 500, 501, 8 * EPOCH - 1, 8 * EPOCH, 11 * EPOCH - 1, 11 * EPOCH, total - 1]
    base = 1e-4 if recipe is coco_retinanet_svt_small_1x else 2e-4
    assert [float(schedule(step)) for step in steps] == pytest.approx([of_mmcv(base, s) for s in steps], rel=FLOAT32)
    assert config.optim.decays("backbone/norms/0/scale", jnp.zeros(3))  # everything does


def test_schedules_of_short_runs() -> None:
    def rates(optim: DetectionOptimConfig, total: int) -> list[float]:
        schedule = optim.make_schedule(batch_size=1, total_steps=total, train_examples=1)
        return [float(schedule(step)) for step in range(total)]

    optim = DetectionOptimConfig(learning_rate=1.0)
    assert rates(optim, 1) == [1.0]  # no warm-up: it ends before the run does
    assert rates(optim, 3) == pytest.approx([0.001, 0.5005, 0.1], rel=FLOAT32)
    falling = dataclasses.replace(optim, decay_at=(), warmup_steps=0)
    assert rates(falling, 3) == [1.0] * 3
    together = dataclasses.replace(optim, decay_at=(0.6, 0.65), warmup_steps=0)
    assert rates(together, 4) == pytest.approx([1, 1, 0.01, 0.01], abs=1)
    assert rates(together, 4)[3] == pytest.approx(0.01, rel=FLOAT32)  # both fall at one step


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_batches_have_the_shapes_that_the_step_is_compiled_for(head: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    config = parse(["detect_folder", "--data.dir", str(root), "--head", head, *ARGUMENTS])
    with pytest.warns(UserWarning, match="annotations that training leaves out: 2 of 18"):
        task = config.make_task()
    assert task.info == DatasetInfo(2, CLASSES, LEARNED_IMAGES, len(SIZES))
    shapes = task.batch_shapes(2)
    assert ("masks" in shapes) == (head == "mask_rcnn")
    for batch in itertools.islice(task.batches("train", 2), 2):
        found = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert found == {name: (shape.shape, shape.dtype) for name, shape in shapes.items()}
        images = np.asarray(task.augment(batch, [])["image"])
        for image, pixels, (height, width) in zip(images, batch["image"], batch["size"], strict=True):
            np.testing.assert_allclose(image[:height, :width], normalize(pixels)[:height, :width], rtol=1e-6)
            assert not image[height:].any()
            assert not image[:, width:].any()
    evaluated = list(task.batches("eval", 2))
    assert sum(int(batch["mask"].sum()) for batch in evaluated) == len(SIZES)
    assert {"image", "size", "scale", "original", "id", "mask"} <= set(evaluated[0])


def test_shapes_without_the_files() -> None:
    """As programs are compiled for other machines: the largest landscape of COCO."""
    config = dataclasses.replace(coco_mask_rcnn_svt_small_1x(), batch_size=2)
    shapes = config.make_task(DatasetInfo(80, tuple(map(str, range(80))), TRAIN_EXAMPLES, 5000)).batch_shapes(2)
    assert shapes["image"].shape == (2, 800, 1344, 3)
    assert shapes["boxes"].shape == (2, 100, 4)
    assert shapes["masks"].shape == (2, 100, 800, 168)


def test_the_recipe_for_folders_names_its_command() -> None:
    assert "python -m train.main detect_folder --data.dir DIR" in (detect_folder.__doc__ or "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "3"], "batch_size=3: must be a multiple of group_size x optim.accumulate, 2 x 1"),
        (["--optim.accumulate", "2"], "batch_size=2: must be a multiple of group_size x optim.accumulate, 2 x 2"),
        (["--group_size", "0"], "group_size=0: must be an integer from 1"),
        (["--box_samples", "3"], "box_samples=3: must be an integer from 4 to 4096"),
        (["--head", "fcos"], "--head"),
        (["--data.dir", ""], "data.dir='': must be the folder of the data set"),
        (["--data.source", "voc"], "data.source='voc': must be folder or coco"),
        (["--data.longer", "40"], "data.longer=40: must be an integer from 64, shorter, to 16384"),
        (["--data.max_boxes", "0"], "data.max_boxes=0: must be an integer from 1 to 4096"),
        (["--data.flip", "2"], "data.flip=2.0: must be a number in [0, 1]"),
        (["--optim.decay_at", "0.5", "0.5"], "optim.decay_at=(0.5, 0.5): must be rising shares between 0 and 1"),
        (["--optim.decay_factor", "0"], "optim.decay_factor=0.0: must be a factor in (0, 1]"),
        (["--optim.warmup_steps", "-1"], "optim.warmup_steps=-1: must be an integer from 0"),
        (["--optim.warmup_ratio", "nan"], "optim.warmup_ratio=nan: must be a factor in [0, 1]"),
    ],
)
def test_settings_that_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse(["detect_folder", *ARGUMENTS, *flags])
    assert message in str(raised.value)
