"""TPU chips, and devices to compile for without them."""

import dataclasses
import os
from importlib import util

import jax
from jax.experimental import topologies

from twins_jax.errors import InputError, one_line, require


@dataclasses.dataclass(frozen=True)
class Chip:
    """The memory and the rates of one chip.

    Attributes:
        name: as in a topology, "v5e".
        hbm_bytes: memory.
        peak_flops: bfloat16 operations a second.
        hbm_bandwidth: bytes a second.
        ici_bandwidth: bytes a second that it can send to its neighbors over all links together; it receives as many.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float


CHIPS: dict[str, Chip] = {
    # By JAX's device kind. From Google's Cloud TPU documentation, pages "TPU v5e", "TPU v5p" and "TPU v6e" (key chip
    # specifications), whose bandwidth between chips counts both directions: half of it is sent.
    "TPU v5 lite": Chip("v5e", 16 * 2**30, 197e12, 819e9, 400e9 / 2),
    "TPU v5": Chip("v5p", 95 * 2**30, 459e12, 2765e9, 1200e9 / 2),
    "TPU v6 lite": Chip("v6e", 32 * 2**30, 918e12, 1638e9, 800e9 / 2),
}


def topology_devices(name: str) -> tuple[Chip, list[jax.Device]]:
    """The devices of a slice of TPU chips, for which programs can be compiled but not run.

    Args:
        name: generation and shape, such as "v5e:4x4" or "v5p:2x2x4".

    Returns:
        The chip and one device for each of the slice's.

    Raises:
        InputError: libtpu is not installed or does not know the slice, or the chip is not in `CHIPS`.
    """
    if util.find_spec("libtpu") is None:
        raise InputError("topology: compiling for TPU needs libtpu; install it (the extra `tpu`)")
    # Without the first two libtpu asks where it runs, and warns; without the third a second process fails.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology={name!r}: {one_line(error)}") from error
    kind: str = devices[0].device_kind  # type: ignore[attr-defined]
    allowed = f"a slice of {', '.join(chip.name for chip in CHIPS.values())}, as v5e:2x2: found {kind}"
    require("topology", name, kind in CHIPS, allowed)
    return CHIPS[kind], devices
