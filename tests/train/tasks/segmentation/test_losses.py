import jax
import numpy as np
import pytest

from train.tasks.segmentation import rows
from train.tasks.segmentation.losses import pixel_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((2, 5, 4, 6), np.float32)
LABELS = RNG.integers(0, 6, (2, 18, 17)).astype(np.uint8)
LABELS[RNG.random(LABELS.shape) < 0.3] = 255


@pytest.mark.parametrize("step", [18, 5])
def test_loss_and_gradient_are_pytorchs(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Resized, summed over pixels that are not ignored, divided by the number of all; `step` rows at a time."""
    monkeypatch.setattr(rows, "MAX_LOGITS", step * LOGITS.shape[-1] * LABELS[:, 0].size)
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    resized = torch.nn.functional.interpolate(
        logits.permute(0, 3, 1, 2), LABELS.shape[1:], mode="bilinear", align_corners=False
    )
    labels = torch.tensor(LABELS.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(resized, labels, ignore_index=255, reduction="none").mean()
    expected.backward()
    loss, gradient = jax.jit(jax.value_and_grad(pixel_cross_entropy))(LOGITS, LABELS)
    assert loss.dtype == np.float32
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    scale = float(np.abs(logits.grad.numpy()).max())
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=0, atol=1e-6 * scale)


def test_nothing_but_ignored_pixels() -> None:
    loss, gradient = jax.value_and_grad(pixel_cross_entropy)(LOGITS, np.full_like(LABELS, 255))
    assert float(loss) == 0
    assert not np.asarray(gradient).any()
