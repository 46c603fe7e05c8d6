"""How long the layers of a model take, each alone on its device."""

import functools
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import twins_jax
from twins_jax import TwinsClassifier, TwinsConfig
from twins_jax.layers import Linear

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
                result = program(*arguments)  # queued, so that the device does not wait for Python between calls
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
        A function (inputs, constants) -> outputs, and the two, with shapes for arrays that are not the model's. Inputs
        are what the backward pass differentiates: "params" and "x", or the projections of an attention. Constants are
        what it does not: the residual or the images.
    """
    module: Any = model
    for name in operation.path.split("/"):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    dtype = model.config.dtype
    x = jax.ShapeDtypeStruct(operation.shape, dtype)
    if operation.part in ("LSA", "GSA"):
        return _attention(module, x)

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


class _Given:
    """A linear layer of which all but the product is there: what it would compute is given."""

    def __init__(self, layer: Linear, result: Callable[[jax.Array], jax.Array]) -> None:
        self.dtype = layer.dtype
        self.bias = layer.bias
        self._result = result

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._result(x)


def _attention(module: Any, x: jax.ShapeDtypeStruct) -> tuple[Callable[[Any, Any], jax.Array], Any, None]:
    """LSA or GSA without its projections: the module's own code, where the projections' results are given."""
    names = [name for name in ("qkv", "q", "kv") if hasattr(module, name)]
    call: Any = type(module).__call__

    def sub_sample(x: jax.Array) -> jax.Array:
        return x[:, : x.shape[1] // module.ratio, : x.shape[2] // module.ratio]

    def run(x: jax.Array, project: Callable[[str, jax.Array], jax.Array]) -> jax.Array:
        layers: dict[str, Any] = {
            name: _Given(getattr(module, name), functools.partial(project, name)) for name in names
        }
        layers |= {"sub_sample": sub_sample, "norm": lambda x: x, "proj": lambda x: x}
        attended: jax.Array = call(SimpleNamespace(**vars(module) | layers), x)
        return attended

    shapes: dict[str, Any] = {}

    def record(name: str, x: jax.Array) -> jax.Array:
        shapes[name] = jax.ShapeDtypeStruct((*x.shape[:-1], getattr(module, name).kernel.shape[-1]), x.dtype)
        return jnp.zeros(shapes[name].shape, x.dtype)

    jax.eval_shape(lambda x: run(x, record), x)

    def function(projected: dict[str, jax.Array], constants: None) -> jax.Array:
        del constants
        unused = jnp.zeros(x.shape, x.dtype)  # its shape alone counts: what is computed from it is dropped
        return run(unused, lambda name, _: projected[name])

    return function, shapes, None


def _fill(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return leaf
    return jax.random.normal(jax.random.key(0), leaf.shape, jnp.float32).astype(leaf.dtype)
