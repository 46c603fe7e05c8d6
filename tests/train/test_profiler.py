from pathlib import Path
from typing import Any

import jax
import pytest

from train.profiler import Profiler


@pytest.mark.parametrize("place", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_leaves_the_run_alone(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def succeed(*_: Any) -> None:
        pass

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", succeed)
    monkeypatch.setattr(jax.profiler, "stop_trace", succeed)
    monkeypatch.setattr(jax.profiler, place, full)

    def run(profiler: Profiler) -> None:
        with profiler:
            for step in range(1, 13):
                profiler.before(step)
                profiler.after(step, {})

    profiler = Profiler(tmp_path, 0, enabled=True)
    text = rf"^{tmp_path}/profile could not be written: .*No space left on device$"
    with pytest.warns(UserWarning, match=text) as caught:
        run(profiler)
    assert len(caught) == 1
    assert "No space left" in profiler.failure
