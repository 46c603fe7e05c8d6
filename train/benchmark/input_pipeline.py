"""python -m train.benchmark.input_pipeline DIR: images/s on one core, beside timm's loader in the same run.

DIR is an ImageFolder, read from the page cache. Both sides read, decode, augment and collate to uint8 batches, for
training (random resized crop, flip, rand-m9-mstd0.5-inc1, bicubic) and for evaluation (resize 256, crop 224), in one
thread on one core. Normalization and random erasing are left out: both sides leave them to the device. The seconds are
CPU time, and passes over the images alternate: other work on the machine counts little, and for both sides.

With `--task segmentation` DIR holds images, masks and classes.json. The crops for training are made as by the recipe
`segment_folder`: random resizing by 0.5 to 2, 512 x 512 pixels, flip. The device changes the colors. With
`--task detection` DIR holds images and annotations in COCO's format. The images for training are made as by the recipe
`detect_folder`: shorter side 800, flip, with their boxes and, where all annotations have them, masks. timm has no
counterpart of either.
"""

import dataclasses
import importlib.metadata
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from twins_jax.ending import command_line
from twins_jax.errors import InputError, require
from twins_jax.extra import check_installed
from twins_jax.paths import check_path, source_path

from ..extra import TRAINING
from ..recipes.imagenet import imagenet_svt_small
from ..validation import check_types
from .results import check_out, write_figures

PURPOSE = "measuring the input pipeline"
MAX_PASSES = 10_000


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Decodes and augments images on one core, in this package's pipeline and in timm's, in turn."""

    dir: str = "../shared/data/imagenet-sample"
    """Folder with one folder of images per class; or, for segmentation, with images/, masks/ and classes.json; or, for
    detection, with images/ and annotations/."""

    task: Literal["classification", "segmentation", "detection"] = "classification"
    """segmentation, detection: image and mask or boxes are changed together for training, beside no other pipeline."""

    passes: int = 15
    """Measured passes over all images, for each of the pipelines; one more goes before. At least 2."""

    out: str = "runs/data-benchmark.json"
    """File for the figures."""

    def __post_init__(self) -> None:
        check_types(self)
        check_path("dir", self.dir)
        allowed = f"an integer from 2, for the spread, to {MAX_PASSES}"
        require("passes", self.passes, 2 <= self.passes <= MAX_PASSES, allowed)


@command_line
def main(arguments: Sequence[str]) -> int:
    """Measures, prints a table, writes JSON and returns the exit code."""
    check_installed("tyro", purpose=PURPOSE, extra="train")
    import tyro  # late, as the other packages of the extra: `check_installed` says which are missing

    from ..flags import read_flags

    positional = ("dir", tyro.conf.Positional[str], BenchmarkConfig.dir)
    kind = dataclasses.make_dataclass("Arguments", [positional], bases=(BenchmarkConfig,), frozen=True)
    kind.__doc__ = BenchmarkConfig.__doc__
    config = read_flags(kind, arguments, prog=f"python -m {__package__}.input_pipeline")
    check_installed(*TRAINING, purpose=PURPOSE, extra="train")
    root = source_path("dir", config.dir)
    out = check_out(config.out)
    if config.task != "classification":
        results = (measure_crops if config.task == "segmentation" else measure_boxes)(root, config.passes)
        ((unit, rates),) = results["train"].items()
        sys.stdout.write(
            f"{results['images']} images with {results['with']}, one core; {unit.replace('_per_second', '/s')} of "
            f"training: median (quartiles of the passes)\n{_spread(rates, 0)}\n"
        )
    else:
        results = measure(root, config.passes)
        sys.stdout.write(table(results))
    write_figures(out, results)
    return 0


def measure(root: Path, passes: int) -> dict[str, Any]:
    """Returns the images/s of every pass and the ratios to timm in the same round, with the machine and versions."""
    from ..data.sources import open_source

    root = root.resolve()
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            (Path(folder) / split).symlink_to(root)
        data = dataclasses.replace(imagenet_svt_small().data, source="folder", dir=folder)
        images = len(open_source(data, "eval"))
        pipelines = {
            "train": (_ours(data, images, train=True), _timm(root, images, train=True)),
            "eval": (_ours(data, images, train=False), _timm(root, images, train=False)),
        }
        rates = _rates(pipelines, images, passes)
    results: dict[str, Any] = {"dir": str(root), "images": images, "versions": _versions(), "load": os.getloadavg()}
    for name, (ours, theirs) in rates.items():
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        results[name] = {"images_per_second": ours, "timm_images_per_second": theirs, "ratio": ratios}
    return results


def measure_crops(root: Path, passes: int) -> dict[str, Any]:
    """Returns the crops/s of every pass over a folder of images and masks."""
    from ..recipes.segment import segment_folder
    from ..tasks.segmentation.sources import open_source
    from ..tasks.segmentation.transforms import train_transforms

    data = dataclasses.replace(segment_folder().data, dir=str(root.resolve()))
    source = open_source(data, "train")
    transforms = train_transforms(data, len(source.class_names))
    rates = _training_rates(source, transforms, (data.crop_size, data.crop_size), passes)
    return _figures(data.dir, source, "masks", {"crops_per_second": rates})


def measure_boxes(root: Path, passes: int) -> dict[str, Any]:
    """Returns the images/s of every pass over a folder of images with boxes, and masks if all have them."""
    from ..recipes.detect import detect_folder
    from ..tasks.detection.shapes import training_shape
    from ..tasks.detection.sources import open_source
    from ..tasks.detection.transforms import train_transforms

    data = dataclasses.replace(detect_folder().data, dir=str(root.resolve()))
    try:
        source, masks = open_source(data, "train", masks=True), True
    except InputError:
        source, masks = open_source(data, "train", masks=False), False
    shape = training_shape(source.sizes, data)
    transforms = train_transforms(data, shape, source.boxes_an_image, masks=masks)
    rates = _training_rates(source, transforms, shape, passes)
    return _figures(data.dir, source, "boxes and masks" if masks else "boxes", {"images_per_second": rates})


def _training_rates(source: Any, transforms: Sequence[Any], shape: tuple[int, int], passes: int) -> list[float]:
    import grain

    dataset = grain.MapDataset.source(source).seed(0).apply(transforms)
    # Batches of 8, for one of all images would be large.
    batches = dataset.repeat().batch(8)
    images = math.ceil(len(source) / 8) * 8
    numbers = itertools.count()

    def run_pass() -> None:
        for _ in range(images // 8):
            _check(batches[next(numbers)]["image"].shape, (8, *shape, 3))

    (rates,) = _rates({"train": (run_pass,)}, images, passes)["train"]
    return rates


def _figures(folder: str, source: Any, objects: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "dir": folder,
        "images": len(source),
        "with": objects,
        "versions": {name: importlib.metadata.version(name) for name in ("grain", "numba", "numpy", "simplejpeg")},
        "load": os.getloadavg(),
        "train": rates,
    }


def _rates(
    pipelines: Mapping[str, Sequence[Callable[[], None]]], images: int, passes: int
) -> dict[str, list[list[float]]]:
    """Runs passes over `images` images in turn, on one core; returns the images/s of each pass but the first."""
    from ..progress import counted

    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name, runs in pipelines.items()}
    for round_number in counted("measuring", "passes", passes + 1, range(passes + 1)):
        for name, runs in pipelines.items():
            for run_pass, values in zip(runs, rates[name], strict=True):
                start = time.process_time()
                run_pass()
                if round_number:  # the first compiles and fills the page cache
                    values.append(images / (time.process_time() - start))
    return rates


def table(results: dict[str, Any]) -> str:
    """The medians with quartiles, as text."""
    lines = [f"{results['images']} images, one core; images/s: median (quartiles of the passes)"]
    lines.append(f"{'':6}{'this package':>24}{'timm':>24}{'ratio':>20}")
    for name in ("train", "eval"):
        columns = [results[name][key] for key in ("images_per_second", "timm_images_per_second", "ratio")]
        cells = [_spread(column, digits) for column, digits in zip(columns, (0, 0, 2), strict=True)]
        lines.append(f"{name:6}{cells[0]:>24}{cells[1]:>24}{cells[2]:>20}")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def _ours(data: Any, images: int, *, train: bool) -> Callable[[], None]:
    import grain

    from ..data.sources import open_source
    from ..tasks.classification.transforms import eval_transforms, train_transforms

    # As `train_batches`, but for the shuffle: Grain's takes 3 us an example of ImageNet's, yet 250 us of a few.
    source = grain.MapDataset.source(open_source(data, "train" if train else "eval")).seed(0)
    dataset = source.apply((train_transforms if train else eval_transforms)(data)).repeat().batch(images)
    epochs = itertools.count()

    def run_pass() -> None:
        _check(dataset[next(epochs)]["image"].shape, (images, 224, 224, 3))

    return run_pass


def _timm(root: Path, images: int, *, train: bool) -> Callable[[], None]:
    from twins_jax.port.timm_models import import_timm

    data = import_timm().data  # says which of it and torch is missing
    import torch
    from PIL import ImageOps

    torch.set_num_threads(1)
    # Pillow 13 raises an error at 0 bits, which timm asks for at the highest level; 1 bit costs the same.
    operations = data.auto_augment.NAME_TO_OP
    operations["PosterizeIncreasing"] = lambda image, bits, **_: ImageOps.posterize(image, max(bits, 1))
    loader = data.create_loader(
        data.ImageDataset(str(root)),
        input_size=224,
        batch_size=images,
        is_training=train,
        auto_augment="rand-m9-mstd0.5-inc1" if train else None,
        interpolation="bicubic",
        crop_pct=None if train else 0.875,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    batches: Iterable[Any] = loader.loader  # before the prefetcher, which normalizes on the device

    def run_pass() -> None:
        for batch, _ in batches:
            _check(tuple(batch.shape), (images, 3, 224, 224))

    return run_pass


def _check(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise AssertionError(f"a batch of {shape}, not {expected}")


def _versions() -> dict[str, str]:
    import numpy as np
    import torch
    from PIL import Image

    from twins_jax.port.timm_models import import_timm

    timm = import_timm()
    return {"timm": timm.__version__, "torch": torch.__version__, "numpy": np.__version__, "pillow": Image.__version__}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
