"""Several devices: batches are split over them, parameters are on each, and the compiler adds the communication.

`fit` sets the mesh while it compiles its loop. Code that runs inside says where work is to be split, by `split`, and
what every device needs whole, by `whole`; outside of such a mesh both leave their argument as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from brenier.errors import InputError

AXIS = "batch"
"""The name of the mesh's one axis."""

Devices = int | Literal["all"] | Sequence[jax.Device] | None


def mesh_of(devices: Devices) -> Mesh | None:
    """The mesh of so many devices of this process, of "all" of every process, or of these; `None` for the ordinary one.

    Raises:
        InputError: fewer than one device, more than there are, or not as many of every process.

    Example:
        >>> mesh_of(1) is None
        True
    """
    if devices is None or (devices is not True and devices == 1):
        return None
    if isinstance(devices, str):
        if devices != "all":
            raise InputError(
                f'Expected a number of devices, some of jax.devices() or "all", found {devices!r}.'
            )
        devices = jax.devices()
        if len(devices) == 1:
            return None
    if isinstance(devices, int | np.integer):
        there = jax.local_devices()
        if isinstance(devices, bool) or not 1 <= devices <= len(there):
            raise InputError(
                f"Expected 1 to {len(there)} devices, as there are here ({jax.default_backend()}), found {devices!r}; "
                "on a CPU there are as many as the environment variable JAX_NUM_CPU_DEVICES says."
            )
        devices = there[:devices]
    if not len(devices):
        raise InputError("Expected at least one device, found none.")
    # A process has neighbouring rows of a batch.
    devices = sorted(devices, key=lambda device: device.process_index)
    _check_owners(Counter(device.process_index for device in devices))
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def _check_owners(owners: Counter[int]) -> None:
    if set(owners) == {jax.process_index()}:
        return
    if len(owners) != jax.process_count() or len(set(owners.values())) != 1:
        found = ", ".join(f"{count} of process {rank}" for rank, count in owners.items())
        raise InputError(
            f"Expected devices of this process alone, or as many of each of {jax.process_count()} processes; "
            f'found {found}. Try devices="all".'
        )


def check_shares(mesh: Mesh, n: int) -> None:
    """Raise `InputError` for batches of `n` points that the devices cannot share evenly."""
    if n % mesh.size:
        raise InputError(
            f"Expected batches that {mesh.size} devices share evenly, found {n} points in one; "
            f"try batch_size={max(n // mesh.size, 1) * mesh.size}, or fewer devices."
        )


def in_parts(mesh: Mesh, batches: jax.Array) -> jax.Array:
    """Batches (steps, n, d) with a share of the points on each device, from the rows that this process has of them."""
    shared = NamedSharding(mesh, PartitionSpec(None, AXIS))
    if shared.is_fully_addressable:
        return jax.device_put(batches, shared)
    return jax.make_array_from_process_local_data(shared, batches)


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """A pytree of arrays, the same in every process, on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        copies = [jax.device_put(array, device) for device in sharding.addressable_devices]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    return jax.tree.map(put, tree)


def here(tree: Any) -> Any:
    """What is on every device, on one of this process."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def split(x: Any, axis: int = 0) -> Any:
    """Asks for `x` in parts along `axis`, one on each device of the mesh that is set, where they share it evenly."""
    devices = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
    return x if x.shape[axis] % devices else _constrained(x, *(None,) * axis, AXIS)


def whole(x: Any) -> Any:
    """Asks for all of `x` on every device of the mesh that is set."""
    return _constrained(x)


def _constrained(x: Any, *spec: str | None) -> Any:
    if AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
