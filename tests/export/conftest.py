from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compilation import fast_compilation
from tests.support.models import SVT, classifier
from twins_jax import Preprocessing, TwinsClassifier
from twins_jax.export import export
from twins_jax.export.comparison import Comparison

PREPROCESSING = Preprocessing(image_size=64, crop=0.8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="box")
NAMES = tuple("abcdefghij")


@pytest.fixture(autouse=True, scope="module")
def _fast_compilation() -> Iterator[None]:
    with fast_compilation():
        yield


@pytest.fixture(scope="session")
def model() -> TwinsClassifier:
    """Not to be changed."""
    model = classifier(SVT)
    model.class_names, model.preprocessing, model.multi_label = NAMES, PREPROCESSING, True
    return model


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison, which compiles four programs, is left out."""
    monkeypatch.setattr(
        export, "compare", lambda program, _: [Comparison(name, 0.0, 1e-7) for name in program.output_names]
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
