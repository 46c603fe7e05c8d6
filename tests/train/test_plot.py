"""Drawing a run's metrics."""

import csv
import json

import pytest

from train.plot import draw, main, read_metrics
from twins_jax import InputError

LINES = [
    {"step": 2, "split": "train", "loss": 2.0, "epoch": 0.5},
    {"step": 4, "split": "train", "loss": 1.5, "epoch": 1.0},
    {"step": 4, "split": "eval", "top1": 0.25, "loss": 1.7},
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("content", ["x", "[]", "7", "{}", "[" * 100_000], ids=range(5))
def test_other_content_is_named(content, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(InputError, match=rf"^{path}: not the metrics.jsonl of a run: "):
        read_metrics(path)


def test_evaluations_get_the_epoch_of_their_step(tmp_path):
    training, evaluations = read_metrics(write(tmp_path / "metrics.jsonl", LINES))
    assert [line["epoch"] for line in training] == [0.5, 1.0]
    assert evaluations == [{**LINES[2], "epoch": 1.0}]


def test_same_metrics_give_the_same_picture(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", LINES)
    for name in ("a.svg", "b.svg"):
        draw(metrics, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").stat().st_size > 5000  # more than empty axes


def test_boxes_and_masks_are_in_one_picture(tmp_path):
    sizes = []
    for figures in ({"box_ap": 0.5}, {"box_ap": 0.5, "mask_ap": 0.25}):
        lines = [*LINES[:2], {"step": 4, "split": "eval", **figures, "box_ap50": 0.7}]
        draw(write(tmp_path / "metrics.jsonl", lines), tmp_path / "a.svg")
        text = (tmp_path / "a.svg").read_text()
        assert "evaluation box AP" in text
        sizes.append((text.count("box AP"), text.count("mask AP")))
    assert sizes == [(1, 0), (2, 2)]  # the axis names both, and so does the legend


@pytest.mark.parametrize("content", ["", "not json\n", '{"step": 1}\n'])
def test_bad_metrics_are_named(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        draw(path, tmp_path / "a.svg")


def test_unknown_format_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.xyz: must end in"):
        draw(write(tmp_path / "metrics.jsonl", LINES), tmp_path / "a.xyz")


def test_the_ending_of_the_picture_may_be_in_upper_case(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", LINES)
    for name in ("a.svg", "A.SVG"):
        draw(metrics, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "A.SVG").read_bytes()


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none/a\.svg: could not be written: .*No such file"):
        draw(write(tmp_path / "metrics.jsonl", LINES), tmp_path / "none" / "a.svg")


def test_a_table_has_a_row_for_each_step_and_a_column_for_each_figure(tmp_path):
    """As a run leaves them that was stopped: skipped, a figure that came later; and an evaluation of another kind."""
    lines = [*LINES, {"step": 6, "split": "train", "loss": 1 / 3, "epoch": 1.5, "skipped": 2}]
    lines.append({"step": 6, "split": "eval", "top1": 0.5, "loss": 1e-9, "examples": 4})
    metrics = write(tmp_path / "metrics.jsonl", lines)
    assert main([str(metrics), str(tmp_path / "metrics.CSV")]) == 0
    with (tmp_path / "metrics.CSV").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "epoch", "train/loss", "train/skipped", "eval/top1", "eval/loss", "eval/examples"],
            ["2", "0.5", "2.0", "", "", "", ""],
            ["4", "1.0", "1.5", "", "0.25", "1.7", ""],
            ["6", "1.5", "0.3333333333333333", "2", "0.5", "1e-09", "4"],
        ]


def test_the_first_figure_of_an_evaluation_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    mean = [{**line} for line in LINES]
    mean[2] = {"step": 4, "split": "eval", "map": 0.25, "f1": 0.1, "loss": 1.7}
    draw(write(tmp_path / "metrics.jsonl", mean), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "evaluation mAP (%)" in drawn
    draw(write(tmp_path / "metrics.jsonl", LINES), tmp_path / "b.svg")
    assert "evaluation top-1 (%)" in (tmp_path / "b.svg").read_text()
