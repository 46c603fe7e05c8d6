"""The layout of parameters, optimizer state and batches over a mesh of devices.

The mesh has two axes. Examples are split over both; parameters, and whatever has their names in its path, are split
over "fsdp" alone by `RULES` and copied over "data".
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr

from twins_jax.errors import is_integer, require

AXES = ("data", "fsdp")

RULES: tuple[tuple[str, P], ...] = (
    # The first pattern found in a parameter's path decides.
    # [h, w, in, out]; convolutions of dense heads are most of their parameters.
    (r"(patch_embed/proj|sub_sample|conv|convs/\d+)/kernel$", P(None, None, None, "fsdp")),
    (r"(heads/(cls|reg)|mask_head/(upsample|logits))/kernel$", P(None, None, None, "fsdp")),
    (r"(qkv|q|kv|fc1|shared_fcs/0)/kernel$", P(None, "fsdp")),  # [in, out]
    (r"(attn/proj|fc2|head|shared_fcs/1|box_head/(cls|reg))/kernel$", P("fsdp", None)),  # [in, out]
    (r"", P()),  # biases, norms and the PEG are small
)


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with `fsdp` devices along "fsdp" and the others along "data".

    Args:
        fsdp: size of the axis over which parameters are split.
        devices: all devices of every process if None.

    Raises:
        InputError: `fsdp` does not divide the number of devices, or there are none.
    """
    are_devices = devices is None or (
        isinstance(devices, (Sequence, np.ndarray))
        and len(devices) > 0
        and all(isinstance(d, jax.Device) for d in devices)
    )
    require("devices", devices, are_devices, "None or devices, as jax.devices() lists them")
    count = jax.device_count() if devices is None else len(devices)
    require("fsdp", fsdp, is_integer(fsdp, 1) and count % fsdp == 0, f"a divisor of the number of devices, {count}")
    # Auto axes: under Explicit ones the window reshape of LSA would need shardings spelled out.
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of an array over all devices."""
    return NamedSharding(mesh, P(AXES))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a pytree of arrays, from its path by `RULES`.

    A leaf whose axis the mesh does not split evenly is copied to every device instead.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        fits = len(spec) <= len(leaf.shape) and all(
            axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, leaf.shape, strict=False)
        )
        return NamedSharding(mesh, spec if fits else P())

    return jax.tree_util.tree_map_with_path(of_leaf, tree)
