"""What every test runs under: a core, float64, strict shapes, typed calls, pictures without a screen."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Read when they are imported, here and in the commands that tests start. Compiled programs are kept
# between runs.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most of a run is compilation, for programs that then run for a moment. The flags are those of one
# version, and an unknown one would end the process.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )

import jax
import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

# Compiling and computing go on in as many threads as there are cores. Those of several workers keep each other
# waiting, so each has a core of its own.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...
if WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER[2:]) % len(cores)]})

# A full collection walks all that JAX has traced since the start, and little of that is garbage.
gc.set_threshold(100_000, 50, 1000)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Dtype promotion stays "standard": optax multiplies its integer step count with floats, which
# "strict" refuses in every optimiser.

# Shapes and types in signatures are checked at every call while the tests run, and only then. An
# int may stand for a float, as everywhere in Python's typing. Modules that answer a wrong type with
# a sentence of their own (fit, estimators, methods, ...) are left to do so.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
CHECKED = (
    "coordinates",
    "costs",
    "datasets",
    "discrepancies",
    "gaussian",
    "hamiltonian",
    "hopf_lax",
    "networks",
)
jaxtyping.install_import_hook([f"brenier.{name}" for name in CHECKED], f"{__name__}.typechecked")


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """Forget compiled programs before their mappings are too many for one process.

    Linux allows 65 530, and where there are no more the compiler of the next program crashes.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need an accelerator where there is none."""
    if jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator; JAX found none"))
