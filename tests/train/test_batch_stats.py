"""BatchNorm's running statistics in the state of training: moved by steps, used by evaluation, seen by nothing else."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import twins_jax
from tests.support import batch_norm, runs
from tests.support.compilation import fast_compilation
from train.checkpoint import Checkpoints
from train.config import CheckpointConfig, DistributedConfig
from train.evaluate import evaluate, make_eval_step
from train.loop import run
from train.optim import make_optimizer, make_schedule
from train.state import TrainState, create_state
from train.step import make_train_step
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationOptimConfig
from twins_jax import InputError
from twins_jax.preprocess import IMAGENET_MEAN, IMAGENET_STD
from twins_jax.sharding import make_mesh

INFO = DatasetInfo(10, tuple("0123456789"), 1442, 355)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (16, 32, 32, 3), np.uint8),
    "label": RNG.integers(0, 10, 16).astype(np.int32),
}
MODEL = batch_norm.Normed(10, rngs=nnx.Rngs(0))


def start() -> TrainState:
    trees = jax.tree.map(np.array, (twins_jax.get_params(MODEL), twins_jax.get_batch_stats(MODEL)))
    return create_state(*trees, optax.sgd(1.0), make_mesh(), ema=True)


def step(**optim: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    config = batch_norm.config(optim=ClassificationOptimConfig(ema_decay=0.9, **optim))
    train_step = make_train_step(config.make_task(INFO), nnx.graphdef(MODEL), optax.sgd(1.0), config)
    return jax.jit(train_step)(start(), BATCH)


def embedded(rows: np.ndarray) -> np.ndarray:
    """The input of the model's BatchNorm for images, in float64: [positions, 8]."""
    images = (rows / 255 - IMAGENET_MEAN) / IMAGENET_STD
    patches = images.reshape(-1, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(-1, 8 * 8 * 3)
    return patches @ np.asarray(MODEL.embed.kernel[...], np.float64).reshape(-1, 8)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_moves_them_as_pytorch_does(parts: int) -> None:
    """Momentum 0.1 of PyTorch's, the unbiased variance, and one update for each part of an accumulated batch."""
    after, _ = step(accumulate=parts)
    mean, var = np.zeros(8), np.ones(8)
    for part in range(parts):
        x = embedded(BATCH["image"][part::parts])
        mean, var = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * var + 0.1 * x.var(axis=0, ddof=1)
    # float32 sums over up to 256 positions of products of 192.
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(after.batch_stats["bn"]["var"], var, rtol=1e-5)


def test_nothing_else_sees_them() -> None:
    config = batch_norm.config(optim=dataclasses.replace(batch_norm.config().optim, ema_decay=0.9))
    optimizer = make_optimizer(config, make_schedule(config, 1442))
    trees = jax.tree.map(np.array, (twins_jax.get_params(MODEL), twins_jax.get_batch_stats(MODEL)))
    state = create_state(*trees, optimizer, make_mesh(), ema=True)
    train_step = make_train_step(config.make_task(INFO), nnx.graphdef(MODEL), optimizer, config)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide the int32 step
        after, _ = jax.jit(train_step)(state, BATCH)
    assert set(after.batch_stats["bn"]) == {"mean", "var"}
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path((after.opt_state, after.ema))
    ]
    assert [name for name in names if "bn" in name and "scale" in name]
    assert [name for name in names if "bn" in name and ("mean" in name or "var" in name)] == []


def test_evaluation_uses_them_and_leaves_them() -> None:
    state, _ = step()
    before = jax.tree.map(np.array, state.batch_stats)
    task = batch_norm.config().make_task(INFO)
    evaluator = task.evaluator()
    eval_step = make_eval_step(evaluator, nnx.graphdef(MODEL), make_mesh())
    batch = BATCH | {"mask": np.ones(16, bool)}
    found = evaluate(evaluator, eval_step, state.params, state.batch_stats, [batch])

    images = (BATCH["image"] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    patches = images.reshape(-1, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(-1, 8 * 8 * 3)
    embed, bn, head = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), state.params[n]) for n in ("embed", "bn", "head")
    )
    x = patches @ embed["kernel"].reshape(-1, 8) + embed["bias"]
    x = (x - before["bn"]["mean"]) / np.sqrt(before["bn"]["var"] + 1e-5) * bn["scale"] + bn["bias"]
    logits = np.maximum(x, 0).reshape(16, 16, 8).mean(axis=1) @ head["kernel"] + head["bias"]
    loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), BATCH["label"]]).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, state.batch_stats))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, compile_cache: Path) -> batch_norm.NormedConfig:
    del compile_cache  # in use from now on
    return batch_norm.config(
        workdir=str(tmp_path_factory.mktemp("normed") / "run"),
        checkpoint=CheckpointConfig(every_steps=2, keep=9),
        distributed=DistributedConfig(mode="off"),
        optim=ClassificationOptimConfig(ema_decay=0.9),
    )


def test_a_run_that_was_cut_off_ends_with_the_same_bits(config: batch_norm.NormedConfig, tmp_path: Path) -> None:
    # Promotion as outside of the tests; programs that must give the same bits are compiled in the same way.
    with jax.numpy_dtype_promotion("standard"), fast_compilation():
        final = run(config)
        workdir = tmp_path / "run"
        shutil.copytree(config.workdir, workdir)
        for later in ("4", "6"):
            shutil.rmtree(workdir / "checkpoints" / later)
        assert run(dataclasses.replace(config, workdir=str(workdir))) == final
    saved = runs.saved(Path(config.workdir), 6)
    assert runs.differences(saved, runs.saved(workdir, 6)) == []
    means = saved["batch_stats/bn/mean"]
    assert means.shape == (8,)
    assert np.abs(means).min() > 0
    assert not any("mean" in name for name in saved if not name.startswith("batch_stats/"))

    # And evaluated alone, from the same folder.
    with jax.numpy_dtype_promotion("standard"), fast_compilation():
        evaluated = run(dataclasses.replace(config, eval_only=True))
    assert evaluated == final


def test_a_checkpoint_without_them_does_not_fit(tmp_path: Path) -> None:
    data = iter(grain.MapDataset.range(10).to_iter_dataset())
    state = start()
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints:
        checkpoints.save(dataclasses.replace(state, batch_stats={}), 1, data, None)
    with (
        Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints,
        pytest.raises(InputError, match=r"- batch_stats/bn/mean \(8,\) is missing"),
    ):
        checkpoints.restore(state, data)


def test_a_checkpoint_with_them_does_not_fit_a_model_without(tmp_path: Path) -> None:
    data = iter(grain.MapDataset.range(10).to_iter_dataset())
    state = start()
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints:
        checkpoints.save(state, 1, data, None)
    with (
        Checkpoints(tmp_path, CheckpointConfig(every_steps=1), "top1") as checkpoints,
        pytest.raises(InputError, match=r"\+ batch_stats/bn/mean \(8,\) is left over"),
    ):
        checkpoints.restore(dataclasses.replace(state, batch_stats={}), data)
