"""Files of `torch.save` in both formats, and changed ones."""

import zipfile

import pytest
import torch

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(value, path, is_zip=True, **options):
    torch.save(value, path, _use_new_zipfile_serialization=is_zip, **options)


def name_first(state):
    """A state dict is known by a backbone's names, or else by its tensors."""
    return {"blocks.0.0.norm1.weight": torch.ones(2)} | state


def rewrite(path, target, change):
    """Copies a zip file, with `change(member's name, data)` in the place of each member's data; None leaves it out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            if (data := change(info.filename, old.read(info))) is not None:
                new.writestr(zipfile.ZipInfo(info.filename), data)
