"""Several processes on this machine: the same map as by one, and what happens when one of them is lost.

Processes of the command line and of Python meet through `jax.distributed`, as on a cluster.
"""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import brenier
from brenier.classes import ClassSampler
from brenier.cli._hosts import place_of
from brenier.errors import InputError
from brenier.hosts import Hosts
from brenier.plan import Plan
from brenier.samplers import ArraySampler, FunctionSampler, MemmapSampler
from brenier.shards import ParquetSampler

POINTS = np.random.default_rng(0).normal(size=(90, 2))
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}
PATIENCE = 900  # seconds until a process that hangs fails its test

# One of the processes of a fit in Python; prints nothing and saves where its map sends the source.
SCRIPT = """
import sys, warnings, jax, numpy as np
rank, count, port, name, out = *map(int, sys.argv[1:4]), *sys.argv[4:]
jax.config.update("jax_enable_x64", True)
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
import brenier
warnings.simplefilter("ignore", brenier.BrenierWarning)
small = dict(widths=(16, 8), batch_size=64)
method = dict(
    energy=lambda: brenier.NCF(objective="energy", collocation_size=32, **small),
    dual=lambda: brenier.NCF(**small),
    diotm=lambda: brenier.DIOTM(map_widths=(16,), **small),
    paths=lambda: brenier.HOTA(pool=64, improved=32, refreshed=8, rollout_steps=4, **small),
    residual=lambda: brenier.HOTA(
        objective="residual", trajectories=32, rollout_steps=4, **small
    ),
)[name]()
rng = np.random.default_rng(0)
source = rng.normal(size=(800, 2))
target = rng.normal(size=(900, 2)) @ [[1.5, 0.4], [0.0, 0.7]] + [3.0, -1.0]
problem = brenier.TransportProblem(source, target)
solution = brenier.fit(problem, method, key=jax.random.key(1), steps=100, devices="all")
np.savez(
    f"{out}.{rank}.npz",
    images=solution.transport.forward(source),
    loss=solution.history["loss"],
    score=solution.history["score"],
)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_python(folder, name, count):
    """What each of so many processes finds."""
    port, out = free_port(), folder / f"{name}-{count}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (rank, count, port, name, out))],
            env=ENVIRONMENT,
        )
        for rank in range(count)
    ]
    assert [process.wait(PATIENCE) for process in started] == [0] * count
    return [np.load(f"{out}.{rank}.npz") for rank in range(count)]


def start(folder, *options, count=2, **kwargs):
    """`brenier fit` once for each process."""
    port = free_port()
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", "from brenier.cli import main; main()"),
                *("fit", "x.npy", "y.npy", "--coordinator", f"127.0.0.1:{port}"),
                *("--processes", str(count), "--process-id", str(rank), *options),
            ],
            cwd=kwargs.get("cwd", [folder] * count)[rank],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ends(processes):
    """Exit statuses and what was said on stderr."""
    said = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    # Of these 360 train, which four processes share evenly.
    np.save(tmp_path / "x.npy", rng.normal(size=(400, 2)).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.normal(size=(400, 2)).astype(np.float32) * 2.0 + 1.0)
    return tmp_path


def wait_for(path, process):
    began = time.monotonic()
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["energy", "dual", "diotm", "paths", "residual"])
def test_processes_find_the_map_of_one(tmp_path, name):
    (alone,) = in_python(tmp_path, name, 1)
    size = np.abs(alone["images"]).max()
    for count in (2, 4):
        first, *others = in_python(tmp_path, name, count)
        # Round-off of sums in another order, grown over a hundred steps.
        np.testing.assert_allclose(first["images"], alone["images"], atol=1e-10 * size)
        np.testing.assert_allclose(first["loss"], alone["loss"], rtol=1e-7, atol=1e-10)
        for other in others:
            for column in ("images", "loss", "score"):
                np.testing.assert_array_equal(first[column], other[column])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("victim", [0, -1])
def test_a_lost_process_stops_the_others_and_nothing_is_lost(folder, count, victim):
    options = ("--steps", "200", "--checkpoint-every", "0.1s", "--checkpoint")
    assert ends(start(folder, *options, "a.ckpt", "--out", "a.brenier", count=count))[0] == (
        [0] * count
    )
    again = (*options, "b.ckpt", "--out", "b.brenier")
    processes = start(folder, *again, count=count)
    first = folder / "b.ckpt"
    wait_for(first, processes[0])
    before = first.stat().st_ino  # of the checkpoint at the start: later ones are other files
    while first.stat().st_ino == before:
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    statuses, said = ends(processes)
    assert statuses.pop(victim) == -signal.SIGKILL
    said.pop(victim)
    assert statuses == [3] * (count - 1)
    for words in said:
        (message,) = (line for line in words.splitlines() if line.startswith("error: "))
        assert "process of this fit was lost" in message
        assert "Traceback" not in words
    assert not (folder / "b.brenier").exists()
    assert ends(start(folder, *again, count=count))[0] == [0] * count
    undisturbed, continued = (brenier.load(folder / f"{name}.brenier") for name in "ab")
    x = np.load(folder / "x.npy")
    np.testing.assert_array_equal(undisturbed.transport.forward(x), continued.transport.forward(x))
    for column, values in undisturbed.history.items():
        np.testing.assert_array_equal(values, continued.history[column])


@pytest.mark.slow
def test_an_interrupt_of_one_ends_all_with_a_map(folder):
    options = ("--out", "m.brenier", "--checkpoint", "m.ckpt", "--checkpoint-every", "0.1s")
    processes = start(folder, *options, "--steps", "100000")
    wait_for(folder / "m.ckpt", processes[0])
    processes[1].send_signal(signal.SIGINT)
    assert ends(processes)[0] == [0, 0]
    assert brenier.load(folder / "m.brenier").status == "interrupted"


@pytest.mark.slow
def test_what_is_wrong_in_one_is_wrong_in_all(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.npy").write_bytes((folder / "x.npy").read_bytes())
    run = {"cwd": [folder, elsewhere]}
    statuses, said = ends(start(folder, "--out", "m.brenier", **run))
    assert statuses == [2, 2]
    assert all("y.npy" in words for words in said)
    assert "Process 1: " in said[0]
    np.save(elsewhere / "y.npy", np.load(folder / "x.npy"))
    statuses, said = ends(start(folder, "--out", "m.brenier", **run))
    assert statuses == [2, 2]
    assert all("another data here" in words for words in said)
    # Only the first one writes.
    statuses, said = ends(start(folder, "--out", str(folder / "no" / "m.brenier"), **run))
    assert statuses == [1, 1]
    assert said[0] == said[1]


@pytest.mark.slow
def test_a_single_process_needs_no_others(folder):
    options = ("--out", "m.brenier", "--steps", "25", "--json")
    (process,) = start(folder, *options, count=1)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.startswith("{")
    assert out.endswith("}\n")


# Shares


def whole_and_shares(sampler, n, **options):
    key = jax.random.key(3)
    whole = sampler.draw(key, 4, 3, n, **options)
    parts = [
        sampler.draw(key, 4, 3, n, rows=Hosts(2, rank).share(sampler.batch(n)), **options)
        for rank in range(2)
    ]
    assert parts[0].shape == (3, whole.shape[1] // 2, 2)
    return whole, np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    ("sampler", "n"),
    [
        (ArraySampler(POINTS), 20),
        (ArraySampler(POINTS), 90),
        (MemmapSampler(POINTS), 20),
        (MemmapSampler(POINTS), 90),
        (FunctionSampler(lambda key, n: jax.random.normal(key, (n, 2))), 20),
        (FunctionSampler(lambda key, n: np.full((n, 2), int(key._base_array[1]), float)), 20),
        (ClassSampler({"a": ArraySampler(POINTS[:40]), "b": ArraySampler(POINTS[40:])}), 20),
    ],
    ids=["array", "all", "memmap", "all of it", "function", "numpy", "classes"],
)
def test_shares_make_the_batch(sampler, n):
    whole, together = whole_and_shares(sampler, n)
    np.testing.assert_array_equal(whole, together)


def test_shares_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    brenier.points.write_points(tmp_path / "x.parquet", iter([POINTS[:50], POINTS[50:]]))
    whole, together = whole_and_shares(ParquetSampler([tmp_path / "x.parquet"]), 20)
    np.testing.assert_array_equal(whole, together)


# What is agreed


def test_one_process_agrees_with_itself():
    hosts = Hosts()
    assert hosts.first
    assert hosts.share(8) == slice(0, 8)
    done = []
    with hosts:
        assert hosts.told(lambda: 1) == hosts.together(lambda: 1) == 1
        hosts.later(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        hosts.later(lambda: 1 / 0)


def test_a_plan_follows_another():
    leader, follower = Plan(last_step=100), Plan(last_step=100)
    for step in (25, 50):
        since = {name: len(column) for name, column in leader.history.items()}
        leader.step = step
        leader.record(step=step, loss=1.0 / step)
        leader.judge(0.5, [np.ones(3), np.ones(3)], converges=True)
        leader.revise(100, True, 75)
        follower.follow(leader.news(since))
    assert leader.terms
    leader.terms = []  # these stay with the one that judges
    assert follower == leader
    assert follower.last_step == 75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("host:1", None, 0, 1), "no --processes"),
        ((None, 2, None, 1), "no --coordinator and no --process-id"),
        (("host", 2, 0, 1), "HOST:PORT"),
        (("host:1", 2, 2, 1), "from 0 to 1"),
        (("host:1", 2, 0, 4), "no --devices"),
    ],
)
def test_absurd_places(options, message):
    with pytest.raises(InputError, match=message):
        place_of(*options)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_ends_the_other(folder, rank):
    other, one = start(folder, "--out", "map.brenier", "--wait", "5")[:: 1 if rank else -1]
    other.kill()
    (_, status), (_, said) = ends([other, one])
    assert status == 3
    assert said.count("error: ") == 1
    assert not (folder / "map.brenier").exists()


def test_an_ordinary_fit_has_no_place():
    assert place_of(None, None, None, 4) is None
