"""Several devices: batches are split over them, parameters are on each, and the compiler adds the communication.

`fit` sets the mesh while it compiles its loop. Code that runs inside says where work is to be split, by `split`, and
what every device needs whole, by `whole`; outside of such a mesh both leave their argument as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from brenier.errors import InputError

AXIS = "batch"
"""The name of the mesh's one axis."""

Devices = int | Sequence[jax.Device] | None


def mesh_of(devices: Devices) -> Mesh | None:
    """The mesh of so many devices, or of these; `None` for the ordinary one device.

    Raises:
        InputError: fewer than one device, or more than there are.

    Example:
        >>> mesh_of(1) is None
        True
    """
    if devices is None or (devices is not True and devices == 1):
        return None
    if isinstance(devices, int | np.integer):
        there = jax.devices()
        if isinstance(devices, bool) or not 1 <= devices <= len(there):
            raise InputError(
                f"Expected 1 to {len(there)} devices, as there are here ({jax.default_backend()}), found {devices!r}; "
                "on a CPU there are as many as the environment variable JAX_NUM_CPU_DEVICES says."
            )
        devices = there[:devices]
    if not len(devices):
        raise InputError("Expected at least one device, found none.")
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def place(
    mesh: Mesh, state: Any, batches: tuple[jax.Array, ...], rest: Any
) -> tuple[Any, tuple[jax.Array, ...], Any]:
    """Puts batches (steps, n, d) on the devices, a share of the points on each, and all else on every one.

    Raises:
        InputError: a batch that cannot be shared evenly.
    """
    for batch in batches:
        if batch.shape[1] % mesh.size:
            raise InputError(
                f"Expected batches that {mesh.size} devices share evenly, found {batch.shape[1]} points in one; "
                f"try batch_size={max(batch.shape[1] // mesh.size, 1) * mesh.size}, or fewer devices."
            )
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return (
        jax.device_put(state, everywhere),
        jax.device_put(batches, shared),
        jax.device_put(rest, everywhere),
    )


def split(x: Any, axis: int = 0) -> Any:
    """Asks for `x` in parts along `axis`, one on each device of the mesh that is set."""
    return _constrained(x, *(None,) * axis, AXIS)


def whole(x: Any) -> Any:
    """Asks for all of `x` on every device of the mesh that is set."""
    return _constrained(x)


def _constrained(x: Any, *spec: str | None) -> Any:
    if AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
