import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.train.test_record import changed
from train.config_file import read_config
from train.recipes import RECIPES, digits
from train.tasks.classification.config import ClassificationConfig
from twins_jax import InputError


def as_json(config: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read(tmp_path: Path, stored: Any, kind: type[Any] = ClassificationConfig) -> Any:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored))
    return read_config(path, kind)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_run_wrote(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    other = changed(config, "optim.clip_norm", float("inf"))
    found = read(tmp_path, as_json(other), type(config))
    assert found == other
    tuples = {name for name, value in vars(config.data).items() if isinstance(value, tuple)}
    assert tuples == {name for name, value in vars(found.data).items() if isinstance(value, tuple)}


def test_of_version_0_1(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "support" / "run_0_1.tar.gz") as archive:
        archive.extract("run/config.json", tmp_path, filter="data")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["model"]["name"] = "twins_svt_tiny"
    stored["optim"]["label_smoothing"] = 0.2
    config = read(tmp_path, stored)
    assert (config.label_smoothing, config.optim.learning_rate) == (0.2, 0.008)
    assert config.allow_changes is False


def test_a_field_that_was_not_written_has_its_default(tmp_path: Path) -> None:
    stored = as_json(digits())
    del stored["mix"], stored["data"]["eval_crop"], stored["model"]["remat"], stored["seed"]
    assert read(tmp_path, stored) == changed(digits(), "data.eval_crop", 0.875)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(as_json(digits())), encoding="utf-8-sig")
    assert read_config(path, ClassificationConfig) == digits()


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("", "batch_sise", 3, "batch_sise: is no setting of this version"),
        ("data", "siz", 3, "data.siz: is no setting of this version"),
        ("model", "siz", 3, "model.siz: is no setting of this version"),
        ("", "batch_size", "64", "batch_size='64': must be an integer below 2**31"),
        ("", "batch_size", 64.0, "batch_size=64.0: must be an integer"),
        ("", "batch_size", True, "batch_size=True: must be an integer"),
        ("", "batch_size", 0, "batch_size=0: must be an integer from 1"),
        ("", "steps", "x", "steps='x': must be an integer below 2**31 or None"),
        ("", "epochs", 10**400, "epochs=1000"),
        ("", "init", None, "init=None: must be text"),
        ("", "eval_only", 1, "eval_only=1: must be True or False"),
        ("", "data", [], "data=(): must be a ClassificationDataConfig"),
        ("", "model", "x", "model='x': must be a ModelConfig"),
        ("data", "crop_scale", [0.5], "data.crop_scale=(0.5,): must be 2 values, each a number"),
        ("data", "crop_scale", [0.5, "x"], "data.crop_scale=(0.5, 'x'): must be 2 values"),
        ("distributed", "mode", "on", "distributed.mode='on': must be "),
        ("model", "dtype", 3, "model.dtype="),
        ("model", "name", "x", "model.name='x': must be one of"),
    ],
)
def test_a_field_that_is_not_what_it_must_be(group: str, field: str, value: Any, message: str, tmp_path: Path) -> None:
    stored = as_json(digits())
    (stored[group] if group else stored)[field] = value
    with pytest.raises(InputError) as caught:
        read(tmp_path, stored)
    assert str(caught.value).startswith(f"{tmp_path}/config.json: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("group", "field"), [("", "workdir"), ("", "model"), ("model", "name")])
def test_a_field_without_a_default_is_missing(group: str, field: str, tmp_path: Path) -> None:
    stored = as_json(digits())
    del (stored[group] if group else stored)[field]
    with pytest.raises(InputError, match=f"config.json: {f'{group}.' if group else ''}{field}: is missing$"):
        read(tmp_path, stored)
