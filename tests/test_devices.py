"""Several devices: the same map as on one.

CPU devices are counted when a process starts, so these fits have processes of their own.
"""

import os
import subprocess
import sys

import jax
import pytest

from brenier.devices import check_shares, mesh_of
from brenier.errors import InputError

# Prints how far the map of eight devices is from that of one, and how often the step was traced for it.
SCRIPT = """
import warnings, jax, jax.numpy as jnp, numpy as np, brenier

jax.config.update("jax_enable_x64", {dtype!r} == "float64")
warnings.simplefilter("ignore", brenier.BrenierWarning)
small = dict(widths=(16, 8), batch_size=64)
method = dict(
    energy=lambda: brenier.NCF(objective="energy", collocation_size=32, **small),
    dual=lambda: brenier.NCF(**small),
    diotm=lambda: brenier.DIOTM(map_widths=(16,), **small),
    hota=lambda: brenier.HOTA(pool=64, improved=32, refreshed=8, rollout_steps=4, **small),
    walls=lambda: brenier.HOTA(pool=64, improved=32, refreshed=8, rollout_steps=4, **small),
    residual=lambda: brenier.HOTA(objective="residual", trajectories=32, rollout_steps=4, **small),
)[{method!r}]()
step, traced = type(method).step, []
type(method).step = lambda *args: traced.append(1) or step(*args)
rng = np.random.default_rng(0)
source = rng.normal(size=(800, 2)).astype({dtype!r})
target = (rng.normal(size=(900, 2)) @ [[1.5, 0.4], [0.0, 0.7]] + [3.0, -1.0]).astype({dtype!r})
state_cost = (lambda x: 5.0 * jnp.exp(-x @ x)) if {method!r} == "walls" else None
problem = brenier.TransportProblem(source, target, state_cost=state_cost)
images = []
for devices in (None, 8):
    before = len(traced)
    solution = brenier.fit(
        problem, method, key=jax.random.key(1), steps={steps}, devices=devices, validation=0.0
    )
    images.append(solution.transport.forward(source))
one, many = images
print(np.abs(many - one).max() / np.abs(one).max(), len(traced) - before)
"""


# Prints the program of the energy distance between batches in eight parts.
ENERGY = """
import jax, numpy as np, brenier, brenier.devices
from jax.sharding import NamedSharding, PartitionSpec

mesh = brenier.devices.mesh_of(8)
parts = NamedSharding(mesh, PartitionSpec("batch"))
points = jax.ShapeDtypeStruct((256, 8), np.float32, sharding=parts)
with jax.set_mesh(mesh):
    print(jax.jit(jax.grad(brenier.energy_distance)).lower(points, points).compile().as_text())
"""


def on_eight_devices(script):
    # With the flags of the other tests, programs are so slow that devices give up waiting for each other.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(method, dtype, steps):
    output = on_eight_devices(SCRIPT.format(method=method, dtype=dtype, steps=steps))
    apart, traced = output.split()
    # Chunks share one program.
    assert int(traced) == 1
    return float(apart)


@pytest.mark.slow
def test_no_device_holds_all_distances():
    program = on_eight_devices(ENERGY)
    assert "f32[32,256]" in program
    assert "f32[256,256]" not in program


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
@pytest.mark.parametrize("method", ["energy", "dual", "diotm", "hota", "walls", "residual"])
def test_every_method_on_eight_devices(method, dtype, tolerance):
    assert compare(method, dtype, 200) < tolerance


def test_all_of_one_device():
    assert mesh_of("all") is None


@pytest.mark.parametrize("devices", [0, -1, 10_000, True, []])
def test_absurd_numbers_of_devices(devices):
    with pytest.raises(InputError, match="device"):
        mesh_of(devices)


def test_batches_have_to_share():
    # Refused before anything is placed: the mesh needs no devices.
    mesh = jax.sharding.AbstractMesh((3,), ("batch",))
    with pytest.raises(InputError, match="batch_size=63"):
        check_shares(mesh, 64)
