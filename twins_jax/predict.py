"""Names what images show: `python -m twins_jax.predict WEIGHTS IMAGE...`."""

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twins_jax import page
from twins_jax.command_line import VERSION, Parser, choice_of_weights
from twins_jax.compilation_cache import add_flag, compilation_cache
from twins_jax.ending import command_line, say
from twins_jax.errors import InputError, require, shown
from twins_jax.files import write_text
from twins_jax.image_classifier import Answer, ImageClassifier, padded_size
from twins_jax.image_files import find_images
from twins_jax.paths import target_path, weights_source
from twins_jax.preprocess import read_file
from twins_jax.pretrained import from_pretrained

DESCRIPTION = """\
Names what images show: prints a line for each, its path and the most probable classes.

WEIGHTS: a .safetensors or .pth file, an Orbax folder, a training run's folder, a Hugging Face snapshot,
hf-hub:OWNER/NAME, or a variant's name, such as twins_svt_small, for its published weights.

IMAGE: a file; a folder, of which all images in it and below it are taken; or a pattern such as "photos/**/*.jpg"."""

EPILOG = """\
Exit codes: 0: every image has its line; 1: some could not be read, and are named on stderr; 2: an error, named on one
line; 130: stopped by Ctrl-C."""

MAX_ON_PAGE = 1000
"""Images on a page, which each take some 10 kB of it."""

MAX_PATH = 4096
"""Characters of a path in a line; Linux has no longer ones."""

THREADS = 8
"""That decode: each holds a whole image, up to a quarter of a gigabyte."""

THUMBNAIL = 224
"""Largest side of the pictures in a page, in pixels; they are shown smaller, but screens differ."""

_STYLE = """
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1.2em; }
.images > figure { border: 1px solid var(--line); border-radius: .5em; overflow: hidden; }
.images img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; }
figcaption { padding: .6em .8em .8em; font-size: .87em; }
.file { font-weight: 600; }
.bars { margin: .4em 0 0; padding: 0; list-style: none; }
.bars li { display: flex; justify-content: space-between; gap: 1em; padding: .35em 0 6px;
  background: linear-gradient(var(--bar), var(--bar)) left bottom / var(--share) 4px no-repeat,
    linear-gradient(var(--line), var(--line)) left bottom / 100% 4px no-repeat; }
.bars span:last-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
"""


class Classes(NamedTuple):
    """The answers to an image, as the command shows them."""

    answers: list[Answer]

    def to_text(self) -> str:
        return ", ".join(f"{shown(answer.name)} {answer.probability:.1%}" for answer in self.answers)

    def to_json(self) -> list[dict[str, object]]:
        return [answer._asdict() for answer in self.answers]

    def to_html(self) -> str:
        rows = (
            f'<li style="--share: {answer.probability:.2%}"><span>{page.text(answer.name)}</span>'
            f"<span>{answer.probability:.1%}</span>"
            for answer in self.answers
        )
        return f'<ol class="bars">{"".join(rows)}</ol>'


SHOWN_AS = {ImageClassifier: Classes}
"""The kind of a model -> the way its answers are shown. A kind has the methods `prepare` and `predict`."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(DESCRIPTION, prog="python -m twins_jax.predict", epilog=EPILOG)
    parser.add_argument("weights", metavar="WEIGHTS", help="what to predict with")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="what to look at")
    parser.add_argument("--topk", metavar="N", type=int, default=5, help="classes for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--out", metavar="FOLDER", help="write a page with the images, FOLDER/index.html")
    parser.add_argument("--batch_size", metavar="N", type=int, default=16, help="images at a time (default: 16)")
    parser.add_choice_of_weights("WEIGHTS")
    add_flag(parser)
    args = parser.parse(argv)
    args.weights = weights_source("WEIGHTS", args.weights)
    require("--topk", args.topk, args.topk > 0, "from 1")
    require("--batch_size", args.batch_size, args.batch_size > 0, "from 1")
    target = None if args.out is None else _page_file(target_path("--out", args.out, "folder"))
    paths = find_images(args.images)
    with compilation_cache(args.compilation_cache):
        return _predict(args, paths, target)


def _predict(args: argparse.Namespace, paths: Sequence[str], target: Path | None) -> int:
    from tqdm import tqdm

    predictor = _load(args)
    show = SHOWN_AS[type(predictor)]
    size = padded_size(len(paths), args.batch_size)

    def prepare(path: str) -> np.ndarray:
        return predictor.prepare(read_file(Path(path)))

    figures: list[str] = []
    skipped: list[str] = []
    has_bar = len(paths) > size and sys.stderr is not None and sys.stderr.isatty()
    with (
        contextlib.closing(_prepared(prepare, paths, ahead=2 * size)) as prepared,
        tqdm(unit=" images", total=len(paths), leave=False, disable=not has_bar) as bar,
    ):
        while batch := list(itertools.islice(prepared, size)):
            images = [(path, pixels) for path, pixels in batch if isinstance(pixels, np.ndarray)]
            problems = [problem for _, problem in batch if isinstance(problem, InputError)]
            answers = predictor.predict([pixels for _, pixels in images], size) if images else []
            with bar.external_write_mode():
                for problem in problems:
                    say(f"skipped: {shown(str(problem), 2 * MAX_PATH)}")
                for (path, pixels), answer in zip(images, map(show, answers), strict=True):
                    is_json = {"file": path, "answers": answer.to_json()}
                    print(json.dumps(is_json) if args.json else f"{shown(path, MAX_PATH)}: {answer.to_text()}")
                    if target and len(figures) < MAX_ON_PAGE:
                        figures.append(_figure(path, pixels, answer.to_html()))
                sys.stdout.flush()
            bar.update(len(batch))
            skipped += map(str, problems)
    if target:
        _write_page(target, args.weights, figures, len(paths) - len(skipped), skipped)
    return 1 if skipped else 0


def _load(args: argparse.Namespace) -> ImageClassifier:
    """Returns the predictor for the weights' kind, one of `SHOWN_AS`; only classifiers have one yet."""
    model = from_pretrained(args.weights, **choice_of_weights(args))
    try:
        return ImageClassifier(model, args.topk)
    except InputError as error:
        raise InputError(f"{args.weights}: {error}") from error


def _prepared(
    prepare: Callable[[str], np.ndarray], paths: Sequence[str], ahead: int
) -> Generator[tuple[str, np.ndarray | InputError], None, None]:
    """Yields each path with what `prepare` returns or raises; threads are at most `ahead` paths in advance."""

    def attempt(path: str) -> np.ndarray | InputError:
        try:
            return prepare(path)
        except InputError as error:
            return error

    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        waiting: collections.deque[concurrent.futures.Future[np.ndarray | InputError]] = collections.deque()
        following = iter(paths)
        for path in paths:
            waiting.extend(pool.submit(attempt, each) for each in itertools.islice(following, ahead - len(waiting)))
            yield path, waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _page_file(folder: Path) -> Path:
    """Returns the page's file in a folder, after a look at what could prevent its writing."""
    page.require_own(folder / "index.html")
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise InputError(f"--out={str(folder)!r}: must be in a folder that can be written to: {nearest}")
    return folder / "index.html"


def _figure(path: str, pixels: np.ndarray, answer: str) -> str:
    caption = f'<div class="file">{page.text(path)}</div>{answer}'
    return f"<figure>{page.thumbnail(pixels, THUMBNAIL)}<figcaption>{caption}</figcaption></figure>"


def _write_page(file: Path, weights: str, figures: Sequence[str], count: int, skipped: Sequence[str]) -> None:
    of_all = "" if count == len(figures) else f", the first {len(figures)} of them below"
    images = f"{count} image{'s' * (count != 1)}{of_all}"
    body = f"<p>{images}, each cut as the model sees it. Weights: {page.text(weights)}. {VERSION}.</p>"
    body += f'<div class="images">{"".join(figures)}</div>'
    if skipped:
        problems = "".join(f"<li>{page.text(problem)}" for problem in skipped)
        body += f"<h2>Not read: {len(skipped)}</h2><ul>{problems}</ul>"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: could not be made: {error.strerror}") from error
    write_text(file, page.document("What the images show", _STYLE, body))


if __name__ == "__main__":
    sys.exit(main())
