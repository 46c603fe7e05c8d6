"""The weights that a classifier's run starts from."""

from pathlib import Path

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
