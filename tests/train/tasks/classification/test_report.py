"""The report on a classifier whose answers are known: the image's first pixel gives the predicted class."""

import csv
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.tasks.classification.report import ReportEvaluator
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD

LABELS = np.array([0, 0, 1, 1, 2, 2, 2], np.int32)
ANSWERS = np.array([0, 1, 1, 1, 2, 0, 0], np.int32)


def write_report(folder, names):
    def model(images):
        """Logits that are surer the redder the first pixel; its green value is the class."""
        pixels = (images[:, 0, 0] * IMAGENET_STD + IMAGENET_MEAN) * 255
        return jax.nn.one_hot(jnp.round(pixels[:, 1]).astype(jnp.int32), len(names)) * pixels[:, :1]

    report = ReportEvaluator(folder, names)
    for batch in batches():
        report.update(report.step(model, batch), batch)
    return report.result()


def batches():
    images = np.zeros((8, 2, 2, 3), np.uint8)
    images[:7, 0, 0, 0] = range(1, 8)  # the later the surer
    images[:7, 0, 0, 1] = ANSWERS
    labels = np.append(LABELS, 0).astype(np.int32)
    mask = np.arange(8) < 7
    for rows in (slice(0, 4), slice(4, 8)):
        yield {"image": jnp.asarray(images[rows]), "label": jnp.asarray(labels[rows]), "mask": jnp.asarray(mask[rows])}


@pytest.fixture
def report(tmp_path):
    assert write_report(tmp_path / "report", ["cat & dog", "<b>", "owl"]) == {"examples": 7}
    return tmp_path / "report"


def test_confusion_matrix_counts_every_unmasked_example(report):
    rows = list(csv.reader((report / "confusion.csv").open()))
    assert rows[0][1:] == ["cat & dog", "<b>", "owl"]
    expected = [[np.sum((t == LABELS) & (p == ANSWERS)) for p in range(3)] for t in range(3)]
    assert [[int(count) for count in row[1:]] for row in rows[1:]] == expected


def test_page_shows_the_surest_mistakes_first_and_escapes_names(report):
    page = (report / "index.html").read_text()
    assert "4 of 7 right" in page
    captions = re.findall(r"<figcaption>(.*?)<br>taken for (.*?), ", page)
    assert captions == [("owl", "cat &amp; dog"), ("owl", "cat &amp; dog"), ("cat &amp; dog", "&lt;b&gt;")]
    assert "<b>" not in page
    recalls = re.findall(r"<td>([\d.]+)%<td>of (\d)", page)
    assert recalls == [("33.3", "3"), ("50.0", "2"), ("100.0", "2")]


def test_many_classes_list_the_most_frequent_confusions(tmp_path):
    names = [f"class {i}" for i in range(40)]
    write_report(tmp_path, names)
    pairs = re.findall(r"<tr><td>([^<]*)<td>taken for ([^<]*)<td>(\d+)", (tmp_path / "index.html").read_text())
    assert pairs == [("class 2", "class 0", "2"), ("class 0", "class 1", "1")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.csv", "index.html"]


def test_names_that_are_no_utf8(tmp_path):
    names = [os.fsdecode(b"Kr\xf6te"), "Kröte", "owl"]
    write_report(tmp_path, names)
    assert "Kr\ufffdte" in (tmp_path / "index.html").read_text(encoding="utf-8")
    rows = list(csv.reader((tmp_path / "confusion.csv").open(encoding="utf-8")))
    assert [row[0] for row in rows[1:]] == ["Kr\ufffdte", "Kröte", "owl"]
