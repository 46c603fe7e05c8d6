import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import train.tasks.classification.task
import twins_jax
from train.optim import make_optimizer, make_schedule
from train.recipes import digits
from train.state import TrainState, create_state
from train.step import make_train_step
from train.task import DatasetInfo
from train.tasks.classification.config import ClassificationConfig, ClassificationOptimConfig, MixConfig
from twins_jax.preprocess import normalize
from twins_jax.sharding import make_mesh

RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (16, 8, 8, 3), np.uint8),
    "label": RNG.integers(0, 5, 16).astype(np.int32),
}
PARAMS = {
    "hidden": {"kernel": RNG.standard_normal((192, 7)).astype(np.float32) / 14},
    "head": {"kernel": RNG.standard_normal((7, 5)).astype(np.float32)},
}
EPS = 2.0**-24
"""float32's relative rounding error."""


INFO = DatasetInfo(5, tuple("abcde"), 1442, 355)


class Layer(nnx.Module):
    def __init__(self, kernel: np.ndarray) -> None:
        self.kernel = nnx.Param(jnp.asarray(kernel))


class Perceptron(nnx.Module):
    """A model small enough to be jitted in no time, with noise for dropout."""

    def __init__(self) -> None:
        self.hidden, self.head = (Layer(PARAMS[name]["kernel"]) for name in ("hidden", "head"))

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        hidden = jnp.tanh(images.reshape(len(images), -1) @ self.hidden.kernel[...])
        if rngs is not None:
            hidden *= jax.random.bernoulli(rngs.dropout.key[...], 0.5, hidden.shape).astype(jnp.float32)
        return hidden @ self.head.kernel[...]


class Deterministic(Perceptron):
    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs
        return super().__call__(images)


def config(
    mix: MixConfig | None = None, seed: int = 0, label_smoothing: float = 0.1, **optim: Any
) -> ClassificationConfig:
    mix = mix or MixConfig()
    return dataclasses.replace(
        digits(), optim=ClassificationOptimConfig(**optim), mix=mix, seed=seed, label_smoothing=label_smoothing
    )


def state(optimizer: optax.GradientTransformation = optax.sgd(1.0), *, ema: bool = False) -> TrainState:  # noqa: B008
    return create_state(jax.tree.map(jnp.asarray, PARAMS), {}, optimizer, make_mesh(), ema=ema)


def step_of(
    run: ClassificationConfig,
    model: type[nnx.Module] = Perceptron,
    optimizer: Any = optax.sgd(1.0),  # noqa: B008
) -> Any:
    return jax.jit(make_train_step(run.make_task(INFO), nnx.graphdef(model()), optimizer, run))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_normalized_as_timm_does(timm: ModuleType) -> None:
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    expected = (BATCH["image"] / 255 - np.array(mean)) / np.array(std)
    # Four roundings; the subtraction's can be of 1, before the division by 0.22.
    np.testing.assert_allclose(normalize(jnp.asarray(BATCH["image"])), expected, rtol=0, atol=4 * EPS / 0.22)


@pytest.mark.parametrize(
    ("parts", "mix"), [(2, MixConfig()), (4, MixConfig(mixup_alpha=0.8, erase_probability=0.5)), (16, MixConfig())]
)
def test_accumulation_equals_the_whole_batch(parts: int, mix: MixConfig) -> None:
    whole, whole_metrics = step_of(config(mix), Deterministic)(state(), BATCH)
    cut, cut_metrics = step_of(config(mix, accumulate=parts), Deterministic)(state(), BATCH)
    # Sums over 16 rows in another order: 16 roundings of at most the largest partial sum, twice (forward, backward).
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(cut_metrics[name], value, rtol=32 * EPS)
    for start, first, second in zip(leaves(PARAMS), leaves(whole.params), leaves(cut.params), strict=True):
        assert np.abs(first - start).max() > 1e-3  # the gradient, since the learning rate is 1
        bound = 32 * EPS * max(np.abs(first - start).max(), np.abs(start).max())
        np.testing.assert_allclose(second, first, rtol=0, atol=bound)


def test_parts_draw_dropout_of_their_own() -> None:
    same_rows = {name: np.repeat(value[:1], 16, axis=0) for name, value in BATCH.items()}
    keys = []

    class Spy(Perceptron):
        def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
            assert rngs is not None
            data = jax.random.key_data(rngs.dropout.key[...])
            jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), data)
            return super().__call__(images, rngs)

    step_of(config(accumulate=4), Spy)(state(), same_rows)[1]["loss"].block_until_ready()
    jax.effects_barrier()
    assert len(set(keys)) == 4


def test_moving_average() -> None:
    run = config(ema_decay=0.75)
    step = step_of(run)
    current = state(ema=True)
    expected = [0.75**3 * leaf.astype(np.float64) for leaf in leaves(PARAMS)]
    for left in (2, 1, 0):
        current, _ = step(current, BATCH)
        expected = [
            sum_ + 0.25 * 0.75**left * leaf for sum_, leaf in zip(expected, leaves(current.params), strict=True)
        ]
    for actual, value in zip(leaves(current.ema), expected, strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, value, rtol=0, atol=8 * EPS * np.abs(value).max())  # three steps' roundings
    assert not np.array_equal(leaves(current.ema)[0], leaves(current.params)[0])


def test_no_moving_average_unless_asked_for() -> None:
    assert state().ema is None
    assert step_of(config())(state(), BATCH)[0].ema is None


def test_same_inputs_same_outputs_bit_for_bit() -> None:
    first, second = (step_of(config(MixConfig(erase_probability=0.5)))(state(), BATCH) for _ in range(2))
    for one, other in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_randomness_depends_on_step_and_seed() -> None:
    start, other_seed = state(), config(seed=1)
    at_seven = dataclasses.replace(start, step=jnp.int32(7))
    losses = [float(step_of(config())(each, BATCH)[1]["loss"]) for each in (start, at_seven)]
    losses.append(float(step_of(other_seed)(start, BATCH)[1]["loss"]))
    assert len(set(losses)) == 3
    fixed = [float(step_of(config(), Deterministic)(each, BATCH)[1]["loss"]) for each in (start, at_seven)]
    assert len(set(fixed)) == 1


def test_step_is_counted_and_gradient_norm_is_before_clipping() -> None:
    run = config(clip_norm=1e-3)
    optimizer = make_optimizer(run, make_schedule(run, 1442))
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide the int32 step
        after, metrics = step_of(run, Deterministic, optimizer)(state(optimizer), BATCH)
    assert int(after.step) == 1
    moved = step_of(run, Deterministic)(state(), BATCH)[0].params
    gradients = [start - end for start, end in zip(leaves(PARAMS), leaves(moved), strict=True)]
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
    # The gradients are differences of parameters, which were rounded to float32.
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_erased_then_mixed_then_dropped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mix, keys, given = MixConfig(mixup_alpha=0.3, erase_probability=0.25), [], []

    def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
        keys.append(key)
        return images + probability

    def blend(key: jax.Array, images: jax.Array, targets: jax.Array, *settings: Any) -> tuple[jax.Array, jax.Array]:
        keys.append(key)
        given.append(settings)
        return 3 * images, targets[::-1]

    class Spy(Deterministic):
        def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
            assert rngs is not None
            keys.append(rngs.dropout.key[...])
            return super().__call__(images)

    monkeypatch.setattr(train.tasks.classification.task, "random_erase", erase)
    monkeypatch.setattr(train.tasks.classification.task, "mix", blend)
    run = config(mix, label_smoothing=0.2)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, repeated_augmentation=3))
    with jax.disable_jit():
        step = make_train_step(run.make_task(INFO), nnx.graphdef(Spy()), optax.sgd(1.0), run)
        loss = step(state(), BATCH)[1]["loss"]

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = 3 * ((BATCH["image"] / 255 - mean) / std + 0.25)
    hidden = np.tanh(images.reshape(16, -1) @ PARAMS["hidden"]["kernel"])
    logits = hidden @ PARAMS["head"]["kernel"]
    targets = np.full((16, 5), 0.04)
    targets[np.arange(16), BATCH["label"][::-1]] += 0.8
    losses = np.log(np.exp(logits).sum(axis=1)) - (targets * logits).sum(axis=1)
    # float32 sums of 192 products of values up to about 8.
    assert float(loss) == pytest.approx(losses.mean(), rel=1e-5)
    assert given == [(mix, 3)]
    # Runs that were begun by earlier versions go on with these draws.
    expected = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    np.testing.assert_array_equal([jax.random.key_data(key) for key in keys], jax.random.key_data(expected))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bfloat16_computes_with_float32_parameters_and_reductions(accumulate: int) -> None:
    run = config(accumulate=accumulate, ema_decay=0.9)
    model = nnx.eval_shape(
        lambda: twins_jax.create_model(
            "twins_svt_tiny", num_classes=5, dtype=jnp.bfloat16, remat=True, rngs=nnx.Rngs(0)
        )
    )
    params = twins_jax.get_params(model)
    optimizer = make_optimizer(run, make_schedule(run, 1442))

    def first_step(params: Any, batch: Any) -> Any:
        start = TrainState(jnp.int32(0), params, {}, optimizer.init(params), params)
        return make_train_step(run.make_task(INFO), nnx.graphdef(model), optimizer, run)(start, batch)

    batch = {"image": jax.ShapeDtypeStruct((4, 32, 32, 3), "uint8"), "label": jax.ShapeDtypeStruct((4,), "int32")}
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules divide the int32 step
        program, (after, metrics) = jax.make_jaxpr(first_step, return_shape=True)(params, batch)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((after, metrics))}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}  # int32: the counts of steps
    assert "bf16[" in str(program)
    assert "remat" in str(program) or "checkpoint" in str(program)
