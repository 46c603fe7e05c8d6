"""The layout of ADE20K as released for scene parsing (ADEChallengeData2016.zip): 20,210 and 2,000 images, 150 classes.

Zhou et al., "Scene Parsing through ADE20K Dataset", 2017. A mask's index 0 marks pixels without a class, which are
ignored, and 1 to 150 are the classes (mmseg's `reduce_zero_label`).
"""

from pathlib import Path

from twins_jax.errors import InputError, shown
from twins_jax.files import read_text

from .masks import check_classes

IMAGES, MASKS, CLASSES = "images", "annotations", "objectInfo150.txt"
SPLITS = {"train": "training", "eval": "validation"}


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the names of the classes: the last of the columns, which tabs separate, after one line of headings.

    A line is "2<tab>0.1072<tab>6046<tab>612<tab>building, edifice", with the index in the masks first; some names end
    in a space (CSAILVision/sceneparsing 4ce20bd9, objectInfo150.txt). Of synonyms the first is the name, as in most
    lists of the classes.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    names: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if number == 1 or not line.strip():
            continue
        cells = line.split("\t")
        name = cells[-1].split(",")[0].strip()
        if len(cells) < 2 or not name or cells[0].strip() != str(len(names) + 1):
            raise InputError(
                f"{path}, line {number}: must be class {len(names) + 1} with its name, separated by tabs; "
                f"is {shown(line)}"
            )
        names.append(name)
    return check_classes(tuple(names), path)
