"""The time that each layer of a model takes, alone on its device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import twins_jax
from twins_jax import TwinsClassifier, TwinsConfig, ops
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention

from ..tasks.classification.losses import cross_entropy
from .layer_costs import Operation

ROUNDS = 5


class Timer:
    """Times a model's operations on random inputs.

    Args:
        config: of the model, which gets random parameters.
        num_classes: of the model.
        mode: "infer" (forward) or "train" (forward and backward; AdamW's update).
        seconds: of calls for each figure.
    """

    def __init__(self, config: TwinsConfig, num_classes: int, mode: str, seconds: float) -> None:
        self._model = TwinsClassifier(config, num_classes, rngs=nnx.Rngs(0))
        self._training = mode == "train"
        self._seconds = seconds

    def operation(self, operation: Operation) -> float:
        """Seconds of one call of an operation of the model's; 0 for AdamW where the mode has no backward pass."""
        if operation.part == "AdamW":
            return self._adamw() if self._training else 0.0
        function, inputs, constants = as_function(self._model, operation)
        if not self._training:
            return self._time(function, inputs, constants)

        def forward_and_backward(inputs: Any, constants: Any, gradient: jax.Array, joined: jax.Array | None) -> Any:
            outputs, pull_back = jax.vjp(lambda inputs: function(inputs, constants), inputs)
            (gradients,) = pull_back(gradient)
            return outputs, gradients if joined is None else gradients | {"x": gradients["x"] + joined}

        gradient = jax.eval_shape(function, inputs, constants)
        return self._time(forward_and_backward, inputs, constants, gradient, inputs["x"] if operation.joins else None)

    def whole(self, batch: int, size: int) -> float:
        """Seconds of the model's forward pass, or of a training step, on images of side `size`."""
        apply, params = twins_jax.split_model(self._model)
        images = jax.ShapeDtypeStruct((batch, size, size, self._model.config.in_channels), jnp.float32)
        if not self._training:
            return self._time(apply, params, images)
        optimizer, targets = optax.adamw(1e-4), jnp.full((batch, self._model.num_classes), 1 / self._model.num_classes)

        def step(params: Any, moments: Any, images: jax.Array) -> Any:
            gradients = jax.grad(lambda params: cross_entropy(apply(params, images), targets).mean())(params)
            return _update(optimizer, params, moments, gradients)

        return self._time(step, params, optimizer.init(params), images)

    def _adamw(self) -> float:
        optimizer, params = optax.adamw(1e-4), twins_jax.get_params(self._model)

        def update(params: Any, moments: Any, gradients: Any) -> Any:
            return _update(optimizer, params, moments, gradients)

        return self._time(update, params, optimizer.init(params), jax.eval_shape(lambda: params))

    def _time(self, function: Callable[..., Any], *arguments: Any) -> float:
        """Seconds of a call; random arrays take the place of shapes."""
        program, arguments = jax.jit(function), jax.tree.map(_fill, arguments)

        def seconds_of(calls: int) -> float:
            begin = time.perf_counter()
            for _ in range(calls):
                result = program(*arguments)  # queued: the device does not wait for Python between calls
            jax.block_until_ready(result)
            return (time.perf_counter() - begin) / calls

        seconds_of(1)  # compiles
        calls = max(1, round(self._seconds / ROUNDS / seconds_of(1)))
        return statistics.median(seconds_of(calls) for _ in range(ROUNDS))


def _update(optimizer: optax.GradientTransformation, params: Any, moments: Any, gradients: Any) -> Any:
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments


def as_function(model: TwinsClassifier, operation: Operation) -> tuple[Callable[[Any, Any], jax.Array], Any, Any]:
    """Makes one operation of a model callable.

    Returns:
        A function (inputs, constants) -> outputs, and the two, with shapes for arrays that are not the model's. The
        backward pass differentiates inputs: "params" and "x", or the projections of an attention. It does not
        differentiate constants: the residual or the images.
    """
    module: Any = model
    for name in operation.path.split("/"):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    dtype = model.config.dtype
    x = jax.ShapeDtypeStruct(operation.shape, dtype)
    if operation.part == "LSA":
        return _lsa(module, x)
    if operation.part == "GSA":
        return _gsa(module, x)
    graphdef, params = nnx.split(module)
    if operation.path == "backbone/stages/0/patch_embed/proj":  # the images: float32, and without a gradient

        def embed(inputs: Any, images: jax.Array) -> jax.Array:
            outputs: jax.Array = nnx.merge(graphdef, inputs["params"])(images.astype(dtype))
            return outputs

        return embed, {"params": params}, jax.ShapeDtypeStruct(x.shape, jnp.float32)

    def function(inputs: Any, residual: jax.Array | None) -> jax.Array:
        outputs: jax.Array = nnx.merge(graphdef, inputs["params"])(inputs["x"])
        if operation.path == "norm":
            return outputs.mean((1, 2))
        return outputs if residual is None else residual + outputs

    return function, {"params": params, "x": x}, x if operation.part in ("projection", "MLP") else None


def _lsa(layer: LocallyGroupedAttention, x: jax.ShapeDtypeStruct) -> tuple[Callable[[Any, Any], jax.Array], Any, None]:
    """LSA without its projections: the queries, keys and values of all windows are given."""

    def attend(x: jax.Array, project: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return ops.window_attention(
            x,
            project,
            layer.num_heads,
            layer.window_size,
            window_padding=layer.window_padding,
            implementation=layer.implementation,
        )

    shapes = []

    def record(x: jax.Array) -> jax.Array:
        shapes.append(jax.ShapeDtypeStruct((*x.shape[:-1], 3 * x.shape[-1]), x.dtype))
        return jnp.zeros(shapes[-1].shape, x.dtype)

    jax.eval_shape(lambda x: attend(x, record), x)

    def function(projected: dict[str, jax.Array], constants: None) -> jax.Array:
        del constants
        unused = jnp.zeros(x.shape, x.dtype)  # its shape alone counts: every result of it is dropped
        # An implementation that projects the map instead of its windows projects one position of padding, too.
        return attend(unused, lambda x: projected["qkv"] if x.ndim > 1 else layer.qkv(x))

    return function, {"qkv": shapes[0]}, None


def _gsa(
    layer: GlobalSubSampledAttention, x: jax.ShapeDtypeStruct
) -> tuple[Callable[[Any, Any], jax.Array], Any, None]:
    """GSA without its projections: queries, and keys and values of the representatives are given."""
    batch, height, width, dim = x.shape
    representatives = (batch, height // layer.ratio, width // layer.ratio, 2 * dim)

    def function(projected: dict[str, jax.Array], constants: None) -> jax.Array:
        del constants
        return ops.attention(projected["query"], projected["key_value"], layer.num_heads, layer.implementation)

    return function, {"query": x, "key_value": jax.ShapeDtypeStruct(representatives, x.dtype)}, None


def _fill(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    return jax.random.normal(jax.random.key(0), leaf.shape, jnp.float32).astype(leaf.dtype)
