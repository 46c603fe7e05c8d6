import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx, traverse_util
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import twins_jax
from twins_jax import InputError
from twins_jax.sharding import AXES, batch_sharding, make_mesh, shardings

PUBLISHED = [name for name in twins_jax.list_models() if name != "twins_svt_tiny"]


def mesh(fsdp: int, data: int = 1) -> AbstractMesh:
    return AbstractMesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


@functools.cache
def params(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a model with 1,000 classes, by path."""
    model = nnx.eval_shape(lambda: twins_jax.create_model(name, num_classes=1000, rngs=nnx.Rngs(0)))
    return traverse_util.flatten_dict(twins_jax.get_params(model), sep="/")


def specs(name: str, fsdp: int) -> dict[str, P]:
    layout = shardings(traverse_util.unflatten_dict(params(name), sep="/"), mesh(fsdp, data=2))
    return {path: sharding.spec for path, sharding in traverse_util.flatten_dict(layout, sep="/").items()}


@pytest.mark.parametrize("name", twins_jax.list_models())
def test_every_large_parameter_is_split_over_two_devices(name: str) -> None:
    found = specs(name, fsdp=2)
    for path, leaf in params(name).items():
        is_small = leaf.ndim == 1 or "/peg/" in path
        assert (found[path] == P()) == is_small, path
        assert is_small or [axis for axis in found[path] if axis] == ["fsdp"], path


def test_rules_by_example() -> None:
    found = specs("twins_svt_small", fsdp=8)
    stage = "backbone/stages/1"
    assert found[f"{stage}/patch_embed/proj/kernel"] == P(None, None, None, "fsdp")
    assert found[f"{stage}/blocks/1/attn/sub_sample/kernel"] == P(None, None, None, "fsdp")
    assert found[f"{stage}/blocks/0/attn/qkv/kernel"] == P(None, "fsdp")
    assert found[f"{stage}/blocks/1/attn/q/kernel"] == P(None, "fsdp")
    assert found[f"{stage}/blocks/1/attn/kv/kernel"] == P(None, "fsdp")
    assert found[f"{stage}/blocks/1/mlp/fc1/kernel"] == P(None, "fsdp")
    assert found[f"{stage}/blocks/1/attn/proj/kernel"] == P("fsdp", None)
    assert found[f"{stage}/blocks/1/mlp/fc2/kernel"] == P("fsdp", None)
    assert found["head/kernel"] == P("fsdp", None)
    assert found[f"{stage}/peg/kernel"] == found["head/bias"] == P()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("fsdp", [2, 8, 32])
def test_a_device_holds_little_more_than_its_even_part(name: str, fsdp: int) -> None:
    """All widths are multiples of 32: on up to 32 devices only the parameters without a rule stay whole."""
    wanted, found = specs(name, 1), specs(name, fsdp)
    assert [path for path in wanted if wanted[path] != P() and found[path] == P()] == []
    sizes = {path: leaf.size for path, leaf in params(name).items()}
    held = sum(size / (1 if found[path] == P() else fsdp) for path, size in sizes.items())
    assert held < 1.11 * sum(sizes.values()) / fsdp


def test_optimizer_state_follows_its_parameters() -> None:
    tree = {"head": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}
    layout = shardings({"0": {"mu": tree, "count": jnp.zeros(())}}, mesh(8))["0"]
    assert layout["mu"]["head"]["kernel"].spec == P("fsdp", None)
    assert layout["mu"]["head"]["bias"].spec == layout["count"].spec == P()


def test_a_layout_of_fewer_axes_than_its_rule_is_copied() -> None:
    assert shardings({"head": {"kernel": jnp.zeros(64)}}, mesh(8))["head"]["kernel"].spec == P()


def test_batches_are_split_over_both_axes() -> None:
    assert batch_sharding(make_mesh()).spec == P(AXES)


@pytest.mark.parametrize("fsdp", [0, -1, 3, 1 + math.factorial(8)])
def test_fsdp_must_divide_the_devices(fsdp: int) -> None:
    with pytest.raises(InputError, match=rf"fsdp={fsdp}: must be a divisor of .* {jax.device_count()}"):
        make_mesh(fsdp)


def test_mesh_over_all_devices() -> None:
    found = make_mesh()
    assert dict(found.shape) == {"data": jax.device_count(), "fsdp": 1}
    assert isinstance(NamedSharding(found, P()), NamedSharding)
