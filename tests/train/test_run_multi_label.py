"""A run on images with several labels: trained, evaluated, and read as a model that knows its kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

import twins_jax
from tests.support import models, runs
from tests.support.alone import call_main, last_line

pytestmark = pytest.mark.usefixtures("short_variant", "compile_cache")

LABELS = [["sky", "tree"], ["tree"], [], ["car", "sky"], ["car"], ["sky"], ["car", "sky", "tree"], ["tree"]]
NAMES = ("car", "sky", "tree")
EVAL = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", EVAL)):
        (root / split).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / split / f"{number}.png")
        rows = [{"file_name": f"{number}.png", "labels": LABELS[number]} for number in range(count)]
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_run(folder: Path, arguments: list[str], tmp_path: Path) -> None:
    data = ["--data.source", "folder", "--data.dir", str(folder), "--data.multi_label", "--optim.ema_decay", "0"]
    mixed = ["--mix.mixup_alpha", "0.8", "--mix.cutmix_alpha", "1", "--batch_size", "4", "--eval_batch_size", "4"]
    run = [*arguments, *data, *mixed, "--steps", "2", "--workdir", str(tmp_path / "run")]
    code, output, errors = call_main(run)
    assert code == 0, errors
    final = last_line(output)
    assert [line["split"] for line in runs.metrics(tmp_path / "run")] == ["train", "eval"]

    # The figures are those of the images and labels that the folder holds, whatever the batches and their padding.
    model = twins_jax.from_pretrained(tmp_path / "run")
    assert (model.multi_label, model.class_names) == (True, NAMES)
    images = [twins_jax.preprocess(folder / "val" / f"{number}.png", model.preprocessing) for number in range(EVAL)]
    logits = np.asarray(models.run(model, np.concatenate(images)), np.float64)
    labels = np.array([[name in row for name in NAMES] for row in LABELS[:EVAL]])
    assert final["map"] == pytest.approx(metrics.average_precision_score(labels, logits), abs=1e-12)
    assert final["f1"] == pytest.approx(metrics.f1_score(labels, logits > 0, average="micro", zero_division=0))
    losses = np.log1p(np.exp(np.where(labels, -logits, logits)))
    assert final["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert (final["examples"], final["step"]) == (EVAL, 2)

    refused = "error: report=True: must be False with data.multi_label: it has no report\n"
    assert call_main([*run, "--report"]) == (2, "", refused)


def test_cross_entropy_is_not_for_several_labels(folder: Path, arguments: list[str], tmp_path: Path) -> None:
    data = ["--data.source", "folder", "--data.dir", str(folder), "--data.multi_label", "--loss", "cross_entropy"]
    code, _, errors = call_main([*arguments, *data, "--workdir", str(tmp_path / "run")])
    assert (code, errors) == (2, "error: loss='cross_entropy': must be auto or bce with data.multi_label\n")
