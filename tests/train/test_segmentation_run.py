"""A segmenter trained and evaluated on a made-up ADE20K by the real command, and what comes of it."""

import contextlib
import csv
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from PIL import Image

import twins_jax
from tests.support import runs, short
from tests.support.alone import call_main, last_line
from tests.support.models import NANO, classifier
from tests.support.segmentation import ARGUMENTS, SIZES, make_ade20k, make_folder
from train.main import parse
from train.task import DatasetInfo, Split
from twins_jax import InputError, ops
from twins_jax.preprocess import normalize
from twins_jax.segmentation.preprocess import SegmentationPreprocessing, resize

STEPS, CLASSES = 6, 150


@pytest.fixture(scope="module", autouse=True)
def _nano() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(short.VARIANTS, "nano", NANO)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ade20k(tmp_path_factory.mktemp("data") / "ADEChallengeData2016")


@pytest.fixture(scope="module")
def arguments(root: Path, compile_cache: Path) -> list[str]:
    del compile_cache  # in use from now on
    return [
        *("ade20k_fpn_svt_small", "--data.dir", str(root), "--model.name", "nano", *ARGUMENTS),
        *("--steps", str(STEPS), "--checkpoint.every_steps", "2", "--checkpoint.keep", "9"),
        *("--optim.learning_rate", "0.01", "--data.eval_multiple", "32"),
    ]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, output, errors = call_main([*arguments, "--workdir", str(workdir), "--report"])
    assert code == 0, errors
    return workdir, output


def test_a_run_says_how_it_goes(alone: tuple[Path, str]) -> None:
    workdir, output = alone
    final = last_line(output)
    assert list(final) == ["miou", "macc", "aacc", "examples", "step"]
    assert (final["examples"], final["step"]) == (len(SIZES), STEPS)
    assert 0 < final["miou"] < final["aacc"] < 1
    lines = runs.metrics(workdir)
    training = [line for line in lines if line["split"] == "train"]
    assert len(training) == STEPS
    assert all(line["loss"] == line["loss_decode"] > 0 for line in training)
    config = json.loads((workdir / "config.json").read_text())
    assert (config["head"], config["model"]["window_padding"]) == ("semantic_fpn", "mask")
    assert json.loads((workdir / "dataset.json").read_text())["num_classes"] == CLASSES


def test_evaluation_is_a_naive_count_over_the_files(alone: tuple[Path, str], root: Path) -> None:
    """Image by image, without batches and groups; figures from pixels in plain NumPy."""
    workdir, output = alone
    make = lambda: twins_jax.create_segmenter("nano", head="semantic_fpn", num_classes=CLASSES, rngs=nnx.Rngs(0))  # noqa: E731
    apply, *_ = twins_jax.split_model(nnx.eval_shape(make))
    apply = jax.jit(apply)
    saved = runs.saved(workdir, STEPS)
    trees = [
        traverse_util.unflatten_dict(
            {name.removeprefix(f"{kind}/"): value for name, value in saved.items() if name.startswith(f"{kind}/")},
            sep="/",
        )
        for kind in ("params", "batch_stats")
    ]
    pairs = []
    for path in sorted((root / "images" / "validation").iterdir()):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(root / "annotations" / "validation" / f"{path.stem}.png")).astype(int)
        height, width = SegmentationPreprocessing(48, 96).size(*mask.shape)
        images = np.zeros((1, -(-height // 32) * 32, -(-width // 32) * 32, 3), np.float32)
        images[0, :height, :width] = normalize(resize(pixels, (height, width)))
        logits = apply(*trees, images)[:, :height, :width]
        predicted = np.asarray(ops.resize_bilinear(logits, mask.shape)).argmax(axis=-1)[0]
        pairs.append(np.stack([mask[mask > 0] - 1, predicted[mask > 0]]))
    labels, predicted = np.concatenate(pairs, axis=1)
    both = [np.sum((labels == k) & (predicted == k)) for k in range(CLASSES)]
    union = [np.sum((labels == k) | (predicted == k)) for k in range(CLASSES)]
    labelled = [np.sum(labels == k) for k in range(CLASSES)]
    expected = {
        "miou": np.mean([b / u for b, u in zip(both, union, strict=True) if u]),
        "macc": np.mean([b / n for b, n in zip(both, labelled, strict=True) if n]),
        "aacc": np.mean(labels == predicted),
    }
    final = last_line(output)
    assert {name: final[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    alone: tuple[Path, str], arguments: list[str], tmp_path: Path
) -> None:
    """Running statistics, random crops and colors included."""
    before, output = alone
    workdir = Path(shutil.copytree(before, tmp_path / "run"))
    for later in ("4", "6"):
        shutil.rmtree(workdir / "checkpoints" / later)
    code, again, errors = call_main([*arguments, "--workdir", str(workdir)])
    assert code == 0, errors
    assert last_line(again) == last_line(output)
    saved = runs.saved(before, STEPS)
    assert runs.differences(saved, runs.saved(workdir, STEPS)) == []
    assert np.abs(saved["batch_stats/decode_head/scale_heads/0/convs/0/bn/mean"]).min() > 0


def test_bfloat16(alone: tuple[Path, str], arguments: list[str], tmp_path: Path) -> None:
    """One step and an evaluation: the same crops and dropout, rounded to 8 bits in the computation alone."""
    workdir = tmp_path / "run"
    flags = ["--model.dtype", "bfloat16", "--steps", "1", "--workdir", str(workdir)]
    code, output, errors = call_main([*arguments, *flags])
    assert code == 0, errors
    assert 0 <= last_line(output)["miou"] <= 1
    loss, expected = (runs.metrics(folder)[0]["loss"] for folder in (workdir, alone[0]))
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.02)
    saved = runs.saved(workdir, 1)
    kept = {name: leaf.dtype for name, leaf in saved.items() if name.startswith(("params/", "batch_stats/"))}
    assert set(kept.values()) == {np.dtype("float32")}
    assert all(np.isfinite(saved[name]).all() for name in kept)


def test_evaluated_alone(alone: tuple[Path, str]) -> None:
    workdir, output = alone
    code, again, errors = call_main(["ade20k_fpn_svt_small", "--workdir", str(workdir), "--eval_only"])
    assert code == 0, errors
    assert last_line(again) == last_line(output)


def test_report(alone: tuple[Path, str]) -> None:
    workdir, output = alone
    with (workdir / "report" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1] == "name 1"
    confusion = np.array([row[1:] for row in rows[1:]], np.int64)
    final = last_line(output)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(final["aacc"], rel=1e-12)
    text = (workdir / "report" / "index.html").read_text()
    assert f"mIoU {final['miou']:.2%} of 6 images" in text
    assert text.count("<figure>") == 6
    assert text.count("<img ") == 4 * 6
    values = [float(value) for value in re.findall(r"\.jpg: IoU ([\d.]+)%", text)]
    assert values == sorted(values)


def test_init_takes_a_classifiers_weights_into_the_backbone(arguments: list[str], tmp_path: Path) -> None:
    source = classifier(NANO)
    twins_jax.save_pretrained(source, tmp_path / "weights")
    config = parse([*arguments, "--init", str(tmp_path / "weights")])
    model = config.make_task(DatasetInfo(3, tuple("abc"), 6, 6)).create_model(nnx.Rngs(0))
    expected = traverse_util.flatten_dict(twins_jax.get_params(source.backbone), sep="/")
    found = traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[f"backbone/{name}"], value, err_msg=name)
    norms = [name for name in found if name.startswith("backbone/norms/")]
    assert len(norms) == 8  # fresh
    assert found["decode_head/classifier/conv/kernel"].shape == (1, 1, 128, 3)
    assert model.config.window_padding == "mask"
    alone = parse([*arguments, "--init", str(tmp_path / "weights"), "--eval_only"])
    with pytest.raises(InputError, match=r"holds a classifier without a segmentation head: use from_pretrained$"):
        alone.make_task(DatasetInfo(3, tuple("abc"), 6, 6)).create_model(nnx.Rngs(0))


def test_init_takes_a_segmenters_weights(alone: tuple[Path, str], arguments: list[str]) -> None:
    """All, running statistics included, but those of other classes."""
    workdir, _ = alone
    config = parse([*arguments, "--init", str(workdir)])
    source = twins_jax.segmenter_from_pretrained(workdir)
    for num_classes, fresh in ((CLASSES, ()), (3, ("decode_head/classifier/",))):
        info = DatasetInfo(num_classes, tuple(map(str, range(num_classes))), 6, 6)
        model = config.make_task(info).create_model(nnx.Rngs(5))
        for get in (twins_jax.get_params, twins_jax.get_batch_stats):
            expected = traverse_util.flatten_dict(get(source), sep="/")
            found = traverse_util.flatten_dict(get(model), sep="/")
            assert set(found) == set(expected)
            assert len(found) > 10
            for name, value in found.items():
                if not name.startswith(fresh or "none"):
                    np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_segmenters_weights_are_evaluated(alone: tuple[Path, str], arguments: list[str], tmp_path: Path) -> None:
    workdir, output = alone
    flags = ["--init", str(workdir), "--eval_only", "--workdir", str(tmp_path / "other")]
    code, again, errors = call_main([*arguments, *flags])
    assert code == 0, errors
    assert last_line(again) == last_line(output) | {"step": 0}
    for others, message in (
        (["--head", "upernet"], "of the head upernet: found semantic_fpn"),
        (["--data.source", "folder", "--data.dir", str(make_folder(tmp_path / "data"))], "of 3 classes, as the data"),
    ):
        code, _, errors = call_main([*arguments, *flags, *others])
        assert code == 2
        assert message in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.eval_scales", "0"], "data.eval_scales=(0.0,): must be one or more factors in (0, 10]"),
        (["--data.longer", "20"], "data.longer=20: must be an integer from 48, shorter, to 16384"),
        (
            ["--head", "upernet", "--batch_size", "1"],
            "batch_size=1: must be at least 2 x optim.accumulate: UPerNet's BatchNorm of one position has no variance",
        ),
        (
            ["--data.eval_mode", "slide", "--data.eval_stride", "65"],
            "data.eval_stride=65: must be an integer from 1 to crop_size, 64",
        ),
        (["--head", "fcn"], "--head"),
        (["--data.dir", ""], "data.dir='': must be the folder of the data set"),
    ],
)
def test_settings_that_are_refused(arguments: list[str], flags: list[str], message: str) -> None:
    code, output, errors = call_main([*arguments, *flags])
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(("missing", "message"), [("classes.json", "classes.json"), ("masks/val/3.png", "3.png")])
def test_a_folder_with_a_file_missing(missing: str, message: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    (root / missing).unlink()
    flags = ["--data.dir", str(root), "--model.name", "nano", *ARGUMENTS, "--workdir", str(tmp_path / "run")]
    code, output, errors = call_main(["segment_folder", *flags])
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert str(root / message.rpartition("/")[0]) in errors
    assert message in errors
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("eval", "validation")])
def test_a_mask_of_another_size_than_its_image(
    split: Split, folder: str, root: Path, arguments: list[str], tmp_path: Path
) -> None:
    """It is found when it is read, and named; on request evaluation leaves it out."""
    other = Path(shutil.copytree(root, tmp_path / "data"))
    path = sorted((other / "annotations" / folder).iterdir())[3]
    Image.fromarray(np.asarray(Image.open(path))[1:]).save(path)
    flags = [*arguments, "--data.dir", str(other)]
    batches = iter(parse(flags).make_task().batches(split, 2))
    with contextlib.closing(batches), pytest.raises(InputError, match=f"^{path}: mask of 70 x 95 pixels; must be of"):
        list(itertools.islice(batches, 6))
    if split == "eval":
        config = parse([*flags, "--data.on_error", "skip", "--data.max_errors", "0.5"])
        with pytest.warns(UserWarning, match="skipped"):
            found = list(config.make_task().batches("eval", 2))
        assert sum(int(batch["mask"].sum()) for batch in found) == len(SIZES) - 1
        assert all((batch["label"][~batch["mask"]] == 255).all() for batch in found)
