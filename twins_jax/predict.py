"""Names what images show, and where: `python -m twins_jax.predict WEIGHTS IMAGE...`."""

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
from typing import Any

from twins_jax import page
from twins_jax.answers import ClassPresenter, ObjectPresenter, Presenter, RegionPresenter
from twins_jax.classifier import TwinsClassifier
from twins_jax.command_line import VERSION, Parser, choice_of_weights
from twins_jax.compilation_cache import add_flag, compilation_cache
from twins_jax.detection.detector import TwinsDetector
from twins_jax.ending import command_line, say
from twins_jax.errors import InputError, require, shown
from twins_jax.extra import check_installed
from twins_jax.files import write_text
from twins_jax.image_classifier import ImageClassifier
from twins_jax.image_detector import ImageDetector
from twins_jax.image_files import find_images
from twins_jax.image_segmenter import ImageSegmenter
from twins_jax.paths import target_path, weights_source
from twins_jax.preprocess import read_file
from twins_jax.pretrained import model_from_pretrained
from twins_jax.segmentation.segmenter import TwinsSegmenter

DESCRIPTION = """\
Names what images show: prints a line for each, its path and the most probable classes. With a segmenter's weights
these are the classes that cover most of the image, and --out writes the class of each pixel, too. With a detector's
they are the classes with the most objects in it, and --out draws these.

WEIGHTS: a .safetensors or .pth file, an Orbax folder, a training run's folder, a Hugging Face snapshot,
hf-hub:OWNER/NAME, or a variant's name, such as twins_svt_small, for its published weights.

IMAGE: a file; a folder, of which all images in it and below it are taken; or a pattern such as "photos/**/*.jpg"."""

EPILOG = """\
Exit codes: 0: every image has its line; 1: some could not be read, and are named on stderr; 2: an error, named on one
line; 130: stopped by Ctrl-C."""

MAX_ON_PAGE = 1000
"""Images on a page, which each take some 10 kB of it; with the classes of their pixels or objects, five times."""

MAX_PATH = 4096
"""Characters of a path in a line; Linux has no longer ones."""

THREADS = 8
"""That decode: each holds a whole image, up to a quarter of a gigabyte."""


@command_line
def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(DESCRIPTION, prog="python -m twins_jax.predict", epilog=EPILOG)
    parser.add_argument("weights", metavar="WEIGHTS", help="what to predict with")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="what to look at")
    parser.add_argument("--topk", metavar="N", type=int, default=5, help="classes for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--out", metavar="FOLDER", help="write a page with the images, FOLDER/index.html, and masks")
    parser.add_argument(
        "--batch_size", metavar="N", type=int, default=16, help="images that are classified at a time (default: 16)"
    )
    parser.add_argument(
        "--score_threshold",
        metavar="S",
        type=float,
        default=0.3,
        help="least score of the objects that are detected, from 0 to 1 (default: 0.3)",
    )
    parser.add_choice_of_weights("WEIGHTS")
    add_flag(parser)
    args = parser.parse(argv)
    args.weights = weights_source("WEIGHTS", args.weights)
    require("--topk", args.topk, args.topk > 0, "from 1")
    require("--batch_size", args.batch_size, args.batch_size > 0, "from 1")
    require("--score_threshold", args.score_threshold, 0 <= args.score_threshold <= 1, "from 0 to 1")
    target = None if args.out is None else _page_file(target_path("--out", args.out, "folder"))
    paths = find_images(args.images)
    with compilation_cache(args.compilation_cache):
        return _predict(args, paths, target)


def _predict(args: argparse.Namespace, paths: Sequence[str], target: Path | None) -> int:
    from tqdm import tqdm

    presenter = _presenter(args, paths, target)
    size = presenter.batch_size

    def prepare(path: str) -> Any:
        pixels = read_file(Path(path))
        try:
            return presenter.prepare(pixels)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    figures: list[str] = []
    skipped: list[str] = []
    has_bar = len(paths) > size and sys.stderr is not None and sys.stderr.isatty()
    with (
        contextlib.closing(_prepared(prepare, paths, ahead=max(2 * size, THREADS))) as prepared,
        tqdm(unit=" images", total=len(paths), leave=False, disable=not has_bar) as bar,
    ):
        while batch := list(itertools.islice(prepared, size)):
            images = [(path, image) for path, image in batch if not isinstance(image, InputError)]
            problems = [problem for _, problem in batch if isinstance(problem, InputError)]
            answers = presenter.show(images) if images else []
            with bar.external_write_mode():
                for problem in problems:
                    say(f"skipped: {shown(str(problem), 2 * MAX_PATH)}")
                for (path, _), answer in zip(images, answers, strict=True):
                    if args.json:
                        print(json.dumps({"file": path} | answer.to_json()))
                    else:
                        print(f"{shown(path, MAX_PATH)}: {answer.to_text()}")
                    if target and len(figures) < MAX_ON_PAGE:
                        figures.append(answer.to_figure(path))
                sys.stdout.flush()
            bar.update(len(batch))
            skipped += map(str, problems)
    if target:
        _write_page(target, args.weights, presenter, figures, len(paths) - len(skipped), skipped)
    return 1 if skipped else 0


def _presenter(args: argparse.Namespace, paths: Sequence[str], target: Path | None) -> Presenter:
    model = model_from_pretrained(args.weights, requires_head=True, **choice_of_weights(args))
    try:
        if isinstance(model, TwinsClassifier):
            return ClassPresenter(ImageClassifier(model, args.topk), len(paths), args.batch_size)
        if isinstance(model, TwinsDetector):
            if args.json and model.head == "mask_rcnn":
                check_installed("pycocotools", purpose="--json with masks", extra="detection")
            return ObjectPresenter(ImageDetector(model, score_threshold=args.score_threshold), args.topk)
        assert isinstance(model, TwinsSegmenter)
        segmenter = ImageSegmenter(model)
    except InputError as error:
        raise InputError(f"{args.weights}: {error}") from error
    return RegionPresenter(segmenter, args.topk, paths, None if target is None else target.parent / "masks")


def _prepared(
    prepare: Callable[[str], Any], paths: Sequence[str], ahead: int
) -> Generator[tuple[str, Any], None, None]:
    """Yields each path with what `prepare` returns or raises; threads are at most `ahead` paths in advance."""

    def attempt(path: str) -> Any:
        try:
            return prepare(path)
        except InputError as error:
            return error

    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
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


def _write_page(
    file: Path, weights: str, presenter: Presenter, figures: Sequence[str], count: int, skipped: Sequence[str]
) -> None:
    of_all = "" if count == len(figures) else f", the first {len(figures)} of them below"
    images = f"{count} image{'s' * (count != 1)}{of_all}"
    body = f"<p>{images}, {presenter.how}. Weights: {page.text(weights)}. {VERSION}.</p>"
    body += f'{presenter.legend()}<div class="images">{"".join(figures)}</div>'
    if skipped:
        problems = "".join(f"<li>{page.text(problem)}" for problem in skipped)
        body += f"<h2>Not read: {len(skipped)}</h2><ul>{problems}</ul>"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: could not be made: {error.strerror}") from error
    write_text(file, page.document("What the images show", presenter.style, body))


if __name__ == "__main__":
    sys.exit(main())
