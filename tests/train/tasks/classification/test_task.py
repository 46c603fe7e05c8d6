"""The weights that a classifier's run starts from, and its loss."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.support.models import SVT, classifier
from train.main import parse
from train.task import DatasetInfo
from twins_jax import InputError, Preprocessing
from twins_jax.config import VARIANTS

HALF = (0.5, 0.5, 0.5)


def test_init_of_images_normalized_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their figures would be wrong; training adapts to the run's normalization."""
    monkeypatch.setitem(VARIANTS, "mini", SVT)
    model = classifier(SVT)

    def create(images: Preprocessing, *flags: str) -> None:
        model.preprocessing = images
        model.save_pretrained(tmp_path / "init", overwrite=True)
        settings = ["--model.name", "mini", "--init", str(tmp_path / "init"), "--optim.ema_decay", "0", *flags]
        task = parse(settings).make_task(DatasetInfo(10, tuple("0123456789"), 100, 10))
        task.create_model(nnx.Rngs(0))

    create(Preprocessing(64, 0.9), "--eval_only")
    create(Preprocessing(mean=HALF, std=HALF))
    allowed = r"^init='.*': must be of images with ImageNet's mean and standard deviation: found "
    for field, found in (("mean", r"mean \(0\.5, 0"), ("std", r"mean \(0\.485, .*\) and std \(0\.5, 0")):
        with pytest.raises(InputError, match=f"{allowed}{found}"):
            create(Preprocessing(**{field: HALF}), "--eval_only")


def test_the_loss_of_several_labels() -> None:
    task = parse(["--data.source", "folder", "--data.dir", "DIR", "--data.multi_label"]).make_task(
        DatasetInfo(3, tuple("abc"), 100, 10)
    )
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((5, 3)).astype(np.float32), rng.random((5, 3)).astype(np.float32)
    loss, _ = task.loss(lambda images, rngs: images, {"image": logits, "target": target}, nnx.Rngs(0))  # noqa: ARG005
    yes = 1 / (1 + np.exp(-np.float64(logits)))
    expected = -(target * np.log(yes) + (1 - target) * np.log(1 - yes)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
