"""python -m train.prepare imagenet2012 --tars DIR: makes the data set that source "imagenet2012" reads."""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from twins_jax.ending import command_line
from twins_jax.errors import InputError, require
from twins_jax.extra import check_installed
from twins_jax.paths import source_path, target_path

from .lock import owned

TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def prepare(dataset: str, tars: Path, data_dir: str) -> Path:
    """Prepares the data set, unless that is done already, and returns its folder.

    Args:
        dataset: its name in TFDS.
        tars: folder of the files `TARS`.
        data_dir: folder that holds TFDS data sets; empty: TFDS's own default.

    Raises:
        InputError: a tar file or TensorFlow is missing.
    """
    missing = [name for name in TARS if not (tars / name).is_file()]
    require("tars", str(tars), not missing, f"a folder with {' and '.join(missing)}, from https://image-net.org")
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"dataset: preparing {dataset} needs TensorFlow, which is not installed; "
            "install tensorflow-cpu (the extra `prepare`)"
        )
    import tensorflow_datasets as tfds  # of the extra `prepare`, which `main` asks for first

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # of carriage returns and block characters
    builder = tfds.builder(dataset, data_dir=data_dir or None)
    folder = Path(builder.data_dir)
    if folder.exists():  # complete: TFDS renames it when it is
        return folder
    with owned("data_dir", folder.parents[1]):  # ROOT/NAME/VERSION
        sys.stdout.write(f"preparing {dataset} from {tars}, which takes hours for all of ImageNet\n")
        sys.stdout.flush()
        # Without this, TFDS would download a copy that it has prepared.
        downloads = tfds.download.DownloadConfig(manual_dir=str(tars), try_download_gcs=False)
        builder.download_and_prepare(download_config=downloads, file_format="array_record")
    return folder


@command_line
def main(arguments: Sequence[str]) -> int:
    """Prepares the data set that the arguments name; returns the exit code: 0, or 2 after an error of the user's."""
    purpose = "preparing a data set"
    check_installed("tyro", purpose=purpose, extra="prepare")
    import tyro

    from .flags import read_flags

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Writes a TFDS data set in the format array_record, which is read without TensorFlow; downloads nothing.

        Needs TensorFlow: the extra `prepare`.
        """

        dataset: tyro.conf.Positional[Literal["imagenet2012"]]
        """The data set."""

        tars: str
        """Folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as https://image-net.org offers them."""

        data_dir: str = ""
        """Folder that holds TFDS data sets, to be given as `data.dir` later (empty: TFDS's own default)."""

    prog = f"python -m {__package__}.prepare"
    config = read_flags(Arguments, arguments, prog=prog)
    tars = source_path("tars", config.tars)
    data_dir = str(target_path("data_dir", config.data_dir, "folder")) if config.data_dir else ""
    check_installed("tensorflow_datasets", purpose=purpose, extra="prepare")
    directory = prepare(config.dataset, tars, data_dir)
    sys.stdout.write(f"{config.dataset} is in {directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
