import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.support.models import SVT, random_array, random_module, relative_error
from twins_jax import TwinsConfig
from twins_jax.attention import GlobalSubSampledAttention, LocallyGroupedAttention

Make = Callable[[TwinsConfig], nnx.Module]
LAYERS: dict[str, Make] = {
    "lsa": lambda config: LocallyGroupedAttention(32, 2, 7, config=config, rngs=nnx.Rngs(0)),
    "gsa": lambda config: GlobalSubSampledAttention(32, 2, 2, config=config, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_cudnn_gets_queries_keys_and_values(monkeypatch: pytest.MonkeyPatch, layer: Make) -> None:
    """By a stand-in of the same contract: cuDNN itself needs a GPU."""
    x = jnp.asarray(random_array(2, 10, 16, 32), jnp.bfloat16)
    config = dataclasses.replace(SVT, dtype=jnp.dtype("bfloat16"), attention_implementation="xla")
    expected = random_module(lambda: layer(config))(x)
    seen = []
    plain = jax.nn.dot_product_attention

    def stand_in(*arguments: jax.Array, implementation: str) -> jax.Array:
        seen.append(implementation)
        with jax.numpy_dtype_promotion("standard"):  # JAX's own plain attention promotes bfloat16 with float32
            return plain(*arguments, implementation="xla")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    config = dataclasses.replace(config, attention_implementation="cudnn")
    found = random_module(lambda: layer(config))(x)
    assert seen == ["cudnn"]
    assert relative_error(found, expected) < 4 * float(jnp.finfo(jnp.bfloat16).eps)
