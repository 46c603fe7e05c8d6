"""The record of a run, on folders that hold a checkpoint by name alone: nothing is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from flax import traverse_util

from tests.support import runs
from train.config import CheckpointConfig, RunConfig
from train.main import main, parse
from train.recipes import RECIPES, digits
from train.record import LENGTH, MAY_CHANGE, Record
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationConfig
from train.tasks.detection.config import DetectionConfig
from train.tasks.segmentation.config import SegmentationConfig
from twins_jax import InputError

INFO = DatasetInfo(3, ("ant", "bee", "cat"), 100, 20)

FIXED_OF_ALL = {
    *("model.name", "model.drop_path_rate", "model.dropout_rate", "model.window_padding", "model.dtype"),
    *("model.attention_implementation", "model.remat", "data.source", "data.flip"),
    *("optim.learning_rate", "optim.weight_decay", "optim.clip_norm", "optim.accumulate", "optim.ema_decay"),
    *("seed", "batch_size", "init"),
}
"""The settings that a run keeps: those that decide the function, the order of the data or the optimizer's steps."""

FIXED = FIXED_OF_ALL | {
    "optim.min_learning_rate",
    *("data.image_size", "data.crop_scale", "data.crop_ratio", "data.eval_crop"),
    *("data.rand_augment_layers", "data.rand_augment_magnitude", "data.rand_augment_std"),
    *("data.repeated_augmentation", "data.multi_label", "data.label_column"),
    *("optim.warmup_learning_rate", "optim.warmup_epochs", "optim.layer_decay"),
    *("mix.mixup_alpha", "mix.cutmix_alpha", "mix.switch_probability", "mix.probability", "mix.erase_probability"),
    *("loss", "label_smoothing"),
}
"""Those of classification."""

FIXED_OF_SEGMENTATION = FIXED_OF_ALL | {
    "optim.min_learning_rate",
    *("head", "auxiliary_weight", "data.crop_size", "data.shorter", "data.longer", "data.scale", "data.cat_max_ratio"),
    *("data.photometric", "data.eval_mode", "data.eval_stride", "data.eval_scales", "data.eval_flip"),
    *("data.eval_multiple", "optim.power", "optim.warmup_steps", "optim.warmup_ratio", "optim.decay"),
}

FIXED_OF_DETECTION = FIXED_OF_ALL | {
    *("head", "group_size", "box_samples", "data.shorter", "data.longer", "data.multi_scale", "data.max_boxes"),
    *("optim.decay_at", "optim.decay_factor", "optim.warmup_steps", "optim.warmup_ratio"),
}

FIXED_OF = {
    ClassificationConfig: FIXED,
    SegmentationConfig: FIXED_OF_SEGMENTATION,
    DetectionConfig: FIXED_OF_DETECTION,
}

OTHER_VALUES: dict[str, Any] = {
    "model.name": "twins_svt_small",
    "model.window_padding": "mask",
    "model.dtype": "bfloat16",
    "model.attention_implementation": "xla",
    "model.remat": True,
    "data.source": "imagenet2012",
    "data.image_size": 64,
    "data.crop_scale": (0.3, 0.9),
    "data.crop_ratio": (0.5, 2.0),
    "data.eval_crop": 0.5,
    "data.label_column": "fine_label",
    "data.multi_label": True,
    "loss": "bce",
    "batch_size": 128,
    "init": "a.safetensors",
}


def flatten(config: RunConfig) -> dict[str, Any]:
    return traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")


def changed(config: Any, field: str, value: Any) -> Any:
    group, _, name = field.rpartition(".")
    if not group:
        return dataclasses.replace(config, **{name: value})
    part = getattr(config, group)
    part = part | {name: value} if isinstance(part, dict) else dataclasses.replace(part, **{name: value})
    return dataclasses.replace(config, **{group: part})


def begin(workdir: Path, **changes: Any) -> RunConfig:
    """Writes the record of a run that has a checkpoint, and returns its settings."""
    config = dataclasses.replace(digits(), workdir=str(workdir), **changes)
    record = Record(workdir, config)
    record.check_settings()
    record.check_dataset(INFO)
    record.write(0)
    (workdir / "checkpoints" / "4").mkdir(parents=True)
    return config


def go_on(config: RunConfig, info: DatasetInfo = INFO, step: int = 4) -> Record:
    record = Record(Path(config.workdir), config)
    record.check_settings()
    record.check_dataset(info)
    if not config.eval_only:
        record.write(step)
    return record


@pytest.mark.parametrize("name", RECIPES)
def test_each_setting_is_decided(name: str) -> None:
    """A new field fails here: put it into `MAY_CHANGE` if runs may go on with another value of it, or into `FIXED`."""
    config = RECIPES[name]()
    fixed = FIXED_OF[type(config)]
    assert MAY_CHANGE.isdisjoint(fixed)
    assert flatten(config).keys() == MAY_CHANGE | fixed


@pytest.mark.parametrize("field", sorted(FIXED))
def test_a_fixed_setting_is_refused(field: str, tmp_path: Path) -> None:
    # Of a source that has all of them.
    config = begin(tmp_path, data=dataclasses.replace(digits().data, source="hf:OWNER/NAME"))
    old = flatten(config)[field]
    new = OTHER_VALUES[field] if field in OTHER_VALUES else old + 1 if isinstance(old, int) else old / 2 + 0.01
    before = runs.content(tmp_path)
    for eval_only in (False, True):
        with pytest.raises(InputError) as caught:
            go_on(dataclasses.replace(changed(config, field, new), eval_only=eval_only))
        assert str(caught.value) == (
            f"workdir: {tmp_path} holds a run with other settings; give another folder or --allow_changes:\n"
            f"  ! {field} is {new!r}, the run has {old!r}"
        )
    assert runs.content(tmp_path) == before


def test_all_differences_are_listed(tmp_path: Path) -> None:
    config = begin(tmp_path)
    for field in ("data.image_size", "batch_size", "seed"):
        config = changed(config, field, 2 * flatten(config)[field] + 64)
    with pytest.raises(InputError) as caught:
        go_on(config)
    assert str(caught.value).splitlines()[1:] == [
        "  ! data.image_size is 128, the run has 32",
        "  ! batch_size is 192, the run has 64",
        "  ! seed is 64, the run has 0",
    ]


def test_what_may_change(tmp_path: Path) -> None:
    config = dataclasses.replace(
        begin(tmp_path),
        eval_batch_size=7,
        eval_every_steps=8,
        log_every_steps=9,
        fsdp=2,
        profile=True,
        checkpoint=CheckpointConfig(every_steps=1, keep=2),
    )
    for field, value in (("data.dir", "elsewhere"), ("data.threads", 5), ("data.workers", 6)):
        config = changed(config, field, value)
    assert go_on(config).changes == []
    assert json.loads((tmp_path / "config.json").read_text())["data"]["threads"] == 5
    assert not (tmp_path / "config_changes.jsonl").exists()


def test_another_length_is_recorded(tmp_path: Path) -> None:
    config = begin(tmp_path)
    assert go_on(dataclasses.replace(config, steps=700, epochs=9.0)).changes == [
        "epochs is 9.0, the run has 16",
        "steps is 700, the run has None",
    ]
    (line,) = (tmp_path / "config_changes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 4, "changes": {"epochs": [16, 9.0], "steps": [None, 700]}}
    assert LENGTH <= MAY_CHANGE


def test_allowed_changes_are_recorded(tmp_path: Path) -> None:
    config = begin(tmp_path)
    other = changed(changed(config, "data.image_size", 64), "model.drop_path_rate", 0.3)
    go_on(dataclasses.replace(other, eval_only=True, allow_changes=True))
    assert not (tmp_path / "config_changes.jsonl").exists()
    go_on(dataclasses.replace(other, allow_changes=True), step=4)
    go_on(other)  # they are the run's own from now on
    go_on(dataclasses.replace(config, allow_changes=True), step=9)
    lines = [json.loads(line) for line in (tmp_path / "config_changes.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 4, "changes": {"model.drop_path_rate": [0.1, 0.3], "data.image_size": [32, 64]}},
        {"step": 9, "changes": {"model.drop_path_rate": [0.3, 0.1], "data.image_size": [64, 32]}},
    ]


def test_initial_weights_may_be_left_out(tmp_path: Path) -> None:
    """They have done their work, and their file may be gone; the record goes on to name them."""
    config = begin(tmp_path, init="weights.safetensors")
    go_on(dataclasses.replace(config, init=""))
    assert json.loads((tmp_path / "config.json").read_text())["init"] == "weights.safetensors"


@pytest.mark.parametrize(
    ("info", "line"),
    [
        (DatasetInfo(3, ("ant", "cat", "bee"), 100, 20), "dataset.class_names[1] is 'cat', the run has 'bee'"),
        (DatasetInfo(3, ("ant", "bee", "cow"), 100, 20), "dataset.class_names[2] is 'cow', the run has 'cat'"),
        (DatasetInfo(2, ("ant", "bee"), 100, 20), "dataset.class_names has 2 entries, the run has 3"),
        (DatasetInfo(3, INFO.class_names, 101, 20), "dataset.train_examples is 101, the run has 100"),
        (DatasetInfo(3, INFO.class_names, 100, 21), "dataset.eval_examples is 21, the run has 20"),
    ],
)
def test_another_data_set_is_refused(info: DatasetInfo, line: str, tmp_path: Path) -> None:
    config = begin(tmp_path)
    stored = json.loads((tmp_path / "dataset.json").read_text())
    assert stored == dataclasses.asdict(INFO) | {"class_names": ["ant", "bee", "cat"]}
    before = runs.content(tmp_path)
    with pytest.raises(InputError, match="holds a run with other data; give another") as caught:
        go_on(config, info)
    assert f"  ! {line}" in str(caught.value).splitlines()
    assert runs.content(tmp_path) == before

    evaluation = dataclasses.replace(config, eval_only=True)
    if "class_names" in line:
        with pytest.raises(InputError, match="class_names"):
            go_on(evaluation, info)
    else:  # an evaluation may be of other examples
        go_on(evaluation, info)

    name = line.split(" ")[0].split("[")[0]
    go_on(dataclasses.replace(config, allow_changes=True), info)
    assert name in json.loads((tmp_path / "config_changes.jsonl").read_text())["changes"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"3",
        b"\xff\xfe{\x00}\x00",
        b"\0" * 9,
        b"[" * 100_000,
        b"{}",
        b'{"batch_size": "x"}',
        None,
    ],
)
@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_a_damaged_record_names_the_file_to_remove(damage: bytes | None, name: str, tmp_path: Path) -> None:
    config, path = begin(tmp_path), tmp_path / name
    path.unlink()
    path.mkdir() if damage is None else path.write_bytes(damage)
    before = runs.content(tmp_path)
    for allow_changes in (False, True):
        with pytest.raises(InputError, match=rf"^{path}: .*; remove it to go on without comparing the \w+$") as caught:
            go_on(dataclasses.replace(config, allow_changes=allow_changes))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert runs.content(tmp_path) == before
    path.rmdir() if damage is None else path.unlink()
    if name == "config.json":
        with pytest.warns(UserWarning, match=f"{path} is missing: the settings are not compared with the run's"):
            go_on(config)
    else:
        go_on(config)
    assert json.loads(path.read_text())


def test_without_a_checkpoint_nothing_goes_on(tmp_path: Path) -> None:
    """A run that ended before its first checkpoint, as a diverging one may, begins anew, whatever its record holds."""
    config = begin(tmp_path)
    (tmp_path / "checkpoints" / "4").rmdir()
    (tmp_path / "config.json").write_text("damaged")
    (tmp_path / "config_changes.jsonl").write_text("of the earlier run\n")
    record = go_on(changed(config, "optim.learning_rate", 1.0), DatasetInfo(1, ("x",), 1, 1), step=0)
    assert record.changes == []
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 1.0
    assert not (tmp_path / "config_changes.jsonl").exists()


def test_config_of_a_record(tmp_path: Path) -> None:
    """`--config`: its settings, the flags over them, and a workdir of its own."""
    flags = ("--steps", "7", "--init", "w", "--data.crop_scale", "0.3", "0.9", "--optim.accumulate", "5")
    run = parse(["finetune_folder", *flags, "--batch_size", "65", "--report", "--workdir", str(tmp_path / "a")])
    other_machine = dataclasses.replace(run.distributed, coordinator="host:1", processes=2, process_id=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(run, distributed=other_machine))))
    new = ("--workdir", str(tmp_path / "b"))
    assert parse(["--config", str(path), *new]) == dataclasses.replace(run, workdir=new[1])
    assert parse(["finetune_384", f"--config={path}", *new, "--seed", "3"]) == dataclasses.replace(
        run, workdir=new[1], seed=3
    )
    # With 65 the recipe's own batch could not be cut into 3 parts: no flag is checked beside another default.
    assert parse(["--config", str(path), *new, "--optim.accumulate", "13"]).optim.accumulate == 13


def test_config_needs_a_workdir_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path)
    assert main(["--config", str(tmp_path / "config.json")]) == 2
    message = "workdir='': must be given beside config, whose run keeps its own folder"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_evaluation_takes_the_settings_of_the_folder(tmp_path: Path) -> None:
    flags = ["--model.name", "twins_svt_small", "--data.image_size", "64", "--init", "w", "--report", "--seed", "3"]
    run = parse(["finetune_folder", *flags, "--workdir", str(tmp_path)])
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(run)))
    evaluation = ["--eval_only", "--workdir", str(tmp_path)]
    expected = dataclasses.replace(run, init="", report=False, eval_only=True)
    assert parse(evaluation) == parse(["imagenet_svt_base", *evaluation]) == expected
    assert parse([*evaluation, "--data.dir", "d"]) == changed(expected, "data.dir", "d")
    # Weights of a file are evaluated with the recipe's settings.
    assert parse([*evaluation, "--init", "w"]).data == digits().data
    (tmp_path / "config.json").unlink()
    assert parse(evaluation).data == digits().data


@pytest.mark.parametrize(
    ("flag", "value"), [("--config", "{}/none"), ("--config", "{}"), ("--config", "{}/config.json")]
)
def test_bad_config_is_one_line(flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "twins_svt_small"}')
    value = value.format(tmp_path)
    assert main([flag, value, "--workdir", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {value}: ")
    assert error.count("\n") == 1
