"""This package's programs for a case of `backends`: inference, or a step of training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import twins_jax
from twins_jax.segmentation.segmenter import TwinsSegmenter

from ..flops import forward_flops
from ..tasks.classification.losses import cross_entropy
from ..tasks.segmentation.losses import pixel_cross_entropy
from .backends import AUXILIARY_WEIGHT, IMAGE_CLASSES, LEARNING_RATE, PIXEL_CLASSES, Case


class Program(NamedTuple):
    """A program, and its arguments in the first call.

    Attributes:
        function: (state, images, ...) -> the outputs in inference, (new state, loss) in training. Training gives the
            state's memory back.
        state: parameters, and in training what changes with them.
        inputs: images float32 [B, H, W, 3], and in training their labels.
        flops: operations of a call; None where the compiled program has to be asked.
    """

    function: Any
    state: Any
    inputs: tuple[jax.Array, ...]
    flops: float | None


def make_program(case: Case) -> Program:
    """Makes the program of a case on random images; its parameters are random, too."""
    rng = np.random.default_rng(0)
    shape = (case.batch, case.size, case.size)
    images = jax.device_put(rng.standard_normal((*shape, 3), np.float32))
    parts = _classifier(case) if case.head == "none" else _segmenter(case)
    if case.mode == "infer":
        # Inference may loop over groups of images, and XLA counts a loop's body once: the count is of one image.
        params, statistics = parts.state
        flops = case.batch * forward_flops(lambda params, x: parts.forward((params, statistics), x), params, case.size)
        return Program(jax.jit(parts.forward), parts.state, (images,), flops)
    if case.head == "none":
        labels = jax.nn.one_hot(rng.integers(IMAGE_CLASSES, size=case.batch), IMAGE_CLASSES)
    else:
        labels = jnp.asarray(rng.integers(PIXEL_CLASSES, size=shape), jnp.uint8)
    return _training(parts, images, labels)


class _Parts(NamedTuple):
    """A model's functions of its state: parameters, and running statistics.

    Attributes:
        state: (params, statistics).
        forward: (state, images) -> logits.
        loss: (params, statistics, images, labels) -> (loss, new statistics).
    """

    state: tuple[Any, Any]
    forward: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, Any]]


def _training(parts: _Parts, images: jax.Array, labels: jax.Array) -> Program:
    optimizer = optax.adamw(LEARNING_RATE)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, statistics, moments = state
        run = jax.value_and_grad(parts.loss, has_aux=True)
        (loss, statistics), gradients = run(params, statistics, images, labels)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), statistics, moments), loss

    state = (*parts.state, optimizer.init(parts.state[0]))
    return Program(jax.jit(step, donate_argnums=0), state, (images, labels), None)


def _classifier(case: Case) -> _Parts:
    model = twins_jax.create_model(case.variant, num_classes=IMAGE_CLASSES, **_options(case))
    apply, params = twins_jax.split_model(model)

    def loss(params: Any, statistics: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        return cross_entropy(apply(params, images), labels).mean(), statistics

    return _Parts((params, {}), lambda state, images: apply(state[0], images), loss)


def _segmenter(case: Case) -> _Parts:
    head = case.head
    assert head != "none"
    model = twins_jax.create_segmenter(case.variant, head=head, num_classes=PIXEL_CLASSES, **_options(case))
    apply, params, statistics = twins_jax.split_model(model)
    train, *_ = twins_jax.split_model(model, TwinsSegmenter.training_logits)

    def loss(params: Any, statistics: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, statistics = train(params, statistics, images, jax.random.key(0))
        total = pixel_cross_entropy(logits.decode, labels)
        if logits.auxiliary is not None:
            total = total + AUXILIARY_WEIGHT * pixel_cross_entropy(logits.auxiliary, labels)
        return total, statistics

    return _Parts((params, statistics), lambda state, images: apply(*state, images), loss)


def _options(case: Case) -> dict[str, Any]:
    return {
        "rngs": nnx.Rngs(0),
        "dtype": jnp.dtype(case.dtype),
        "attention_implementation": case.attention_implementation,
    }
