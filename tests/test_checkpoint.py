import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import brenier
from brenier.checkpoint import read_checkpoint, write_checkpoint
from brenier.errors import FileFormatError, InputError, OutputError
from brenier.files import write_container

RUN = {"seed": 0, "method": {"name": "NCF", "learning_rate": 0.1}, "data": "5f"}


class Inner(eqx.Module):
    weight: jax.Array
    activation: Callable
    name: str = eqx.field(static=True)


class State(NamedTuple):
    network: Inner
    optimizer: optax.OptState
    other: dict


def make(seed=0):
    """A state with every kind of leaf."""
    rng = np.random.default_rng(seed)
    network = Inner(jnp.asarray(rng.normal(size=(3, 4))), jnp.tanh, "a")
    muon = optax.contrib.muon(1e-3)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.zeros(4)}
    updates, optimizer = muon.update(params, muon.init(params), params)
    key = jax.random.key(seed)
    other = {
        "key": key,
        "keys": jax.random.split(key, (2, 3)),
        "rbg": jax.random.key(seed, impl="rbg"),
        "step": jnp.asarray(seed, jnp.int32),
        "mask": jnp.asarray(rng.normal(size=5) > 0),
        "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
        "none": None,
        "numpy": rng.normal(size=(2, 3)).T,
        "scalar": np.float32(rng.normal()),
        "python": (seed, float(rng.normal()), seed > 0),
        # Every bit counts: a nan with a payload, a negative zero, a subnormal.
        "bits": np.asarray([0x7FF8_0000_DEAD_BEEF, 1 << 63, 1], np.uint64).view(np.float64),
        "updates": updates,
    }
    return State(network, optimizer, other)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if callable(one):
            assert one is other
            continue
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        if isinstance(one, jax.Array):
            assert one.dtype == other.dtype
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
        else:
            assert type(one) is type(other)
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "run.ckpt", make(7), {"fingerprint": RUN})
    return tmp_path / "run.ckpt"


def test_round_trip(tmp_path):
    history = {"loss": [0.1, 5e-324, float("inf"), -0.0], "score": []}
    header = {"fingerprint": RUN, "progress": {"step": 25, "best": float("nan"), "x": history}}
    write_checkpoint(tmp_path / "a", make(7), header)
    state, found = read_checkpoint(tmp_path / "a", make(0), RUN)
    assert_same_bits(state, make(7))
    assert repr(found) == repr(header)


def test_restored_state_may_be_donated(path):
    """The loop donates its state, so the arrays must be jax's own."""
    state, _ = read_checkpoint(path, make(), RUN)
    arrays = {"weight": state.network.weight, "step": state.other["step"]}
    advance = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
    expected = np.asarray(make(7).network.weight) + 3
    for _ in range(3):
        arrays = advance(arrays)
    # Three additions instead of one round differently by an ulp.
    np.testing.assert_allclose(arrays["weight"], expected, rtol=1e-15)


def test_a_single_array(tmp_path):
    write_checkpoint(tmp_path / "a", jnp.arange(3), {"fingerprint": RUN})
    assert_same_bits(read_checkpoint(tmp_path / "a", jnp.zeros(3, int), RUN)[0], jnp.arange(3))


def test_like_is_not_changed(path):
    like = make(0)
    read_checkpoint(path, like, RUN)
    assert_same_bits(like, make(0))


def test_fingerprint_of_tuples(tmp_path):
    """JSON turns tuples into lists; the run is still the same."""
    write_checkpoint(tmp_path / "a", make(), {"fingerprint": {"widths": (4, 4)}})
    read_checkpoint(tmp_path / "a", make(), {"widths": (4, 4)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"method": {"name": "NCF", "learning_rate": 0.2}}, r"method\.learning_rate was 0\.1 and"),
        ({"data": None}, "data was '5f' and is None now"),
        ({"new": 1}, "new was None and is 1 now"),
    ],
)
def test_another_run(path, change, words):
    with pytest.raises(FileFormatError, match=f"checkpoint of another run: {words}"):
        read_checkpoint(path, make(), RUN | change)


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        ("numpy", np.zeros((3, 3)), r"numpy.*was 'float64\[3, 2\]' and is 'float64\[3, 3\]'"),
        ("numpy", np.zeros((3, 2), np.float32), r"numpy.*'float64\[3, 2\]' and is 'float32"),
        ("none", jnp.zeros(2), r"none.*was None and is 'float64\[2\]' now"),
        ("keys", jax.random.split(jax.random.key(0), 6), "keys"),
        ("rbg", jax.random.key(0), "rbg"),
        ("mask", None, "mask.*is None now"),
    ],
)
def test_another_state(path, where, change, words):
    like = make()
    like = like._replace(other=like.other | {where: change})
    with pytest.raises(FileFormatError, match=f"checkpoint of another state: .*{words}"):
        read_checkpoint(path, like, RUN)


def test_flipped_bytes(path):
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    like, expected = make(), make(7)
    for at in rng.integers(len(data), size=200):
        changed = data.copy()
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            state, _ = read_checkpoint(path, like, RUN)
        except FileFormatError:
            continue
        assert_same_bits(state, expected)


def test_cut_short(path):
    data, like = path.read_bytes(), make()
    for length in range(0, len(data), len(data) // 50):
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError):
            read_checkpoint(path, like, RUN)


def test_other_files(path):
    write_container(path, "solution", {}, {})
    with pytest.raises(FileFormatError, match="is a map"):
        read_checkpoint(path, make(), RUN)
    for header in ([], None, {}, {"fingerprint": []}):
        write_container(path, "checkpoint", header, {})
        with pytest.raises(FileFormatError, match="another run"):
            read_checkpoint(path, make(), RUN)


def test_header_that_is_not_json(path):
    before = path.read_bytes()
    with pytest.raises(InputError, match="not JSON"):
        write_checkpoint(path, make(), {"fingerprint": RUN, "callback": print})
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_keeps_the_old_checkpoint(path, monkeypatch, call):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(path, make(8), {"fingerprint": RUN})
    assert os.listdir(path.parent) == [path.name]
    assert_same_bits(read_checkpoint(path, make(), RUN)[0], make(7))


def python(folder, script, **variables):
    """Run a script in a process of its own and return the JSON it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.path.dirname(os.path.dirname(brenier.__file__))}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_writing(tmp_path):
    """Children that do nothing but write are killed at random moments; the file is always whole."""
    counts = python(
        tmp_path,
        """
        import json, os, random, signal, time
        import numpy as np
        from brenier.checkpoint import read_checkpoint, write_checkpoint

        def state(step):
            return [np.full(50_000, float(step)), np.full(3, step)]

        write_checkpoint("run.ckpt", state(0), {"fingerprint": 0, "step": 0})
        counts, moments = [0], random.Random(0)
        for _ in range(20):
            before, child = os.stat("run.ckpt").st_mtime_ns, os.fork()
            while child == 0:
                step = counts[-1] = counts[-1] + 1
                write_checkpoint("run.ckpt", state(step), {"fingerprint": 0, "step": step})
            while os.stat("run.ckpt").st_mtime_ns == before:
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                time.sleep(0.0005)
            time.sleep(moments.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found, header = read_checkpoint("run.ckpt", state(0), 0)
            assert all((leaf == header["step"]).all() for leaf in found)
            counts.append(header["step"])
        print(json.dumps(counts))
        """,
    )
    # Every child finished at least one write before its end.
    assert counts == sorted(set(counts))


SOURCE, TARGET = np.random.default_rng(0).normal(size=(2, 200, 2)) * [[[1.0]], [[2.0]]] + 1.0
METHOD = brenier.NCF(
    network="mlp", widths=(8,), optimizer="adam", batch_size=32, collocation_size=16, steps=200
)


def fit(checkpoint=None, *, source=SOURCE, method=METHOD, seed=0, **options):
    """200 steps, that is 8 chunks, of a small problem; a checkpoint after each of them."""
    options = {"validation": 0.25, "early_stopping": False, "checkpoint_every": 0.0} | options
    problem = brenier.TransportProblem(source, TARGET)
    with warnings.catch_warnings():
        # How good the map is does not matter here.
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        return brenier.fit(
            problem, method, key=jax.random.key(seed), checkpoint=checkpoint, **options
        )


def assert_same_solution(a, b):
    assert_same_bits(a.transport, b.transport)
    assert (a.status, a.message, a.scores) == (b.status, b.message, b.scores)
    assert a.history.keys() == b.history.keys()
    for name in a.history:
        np.testing.assert_array_equal(a.history[name], b.history[name])


@pytest.fixture(scope="module")
def uninterrupted():
    return fit()


class Killed(Exception):
    pass


class TestResume:
    def test_after_every_chunk(self, tmp_path, uninterrupted):
        """Die after each of the first chunks, with nothing left but the file."""
        for _ in range(3):
            with pytest.raises(Killed):
                fit(tmp_path / "run.ckpt", callbacks=[_die])
        steps = []
        solution = fit(tmp_path / "run.ckpt", callbacks=[lambda event: steps.append(event.step)])
        assert steps[0] == 100
        assert_same_solution(solution, uninterrupted)

    def test_of_a_finished_run_is_its_result(self, tmp_path, uninterrupted):
        fit(tmp_path / "run.ckpt")
        steps = []
        solution = fit(tmp_path / "run.ckpt", callbacks=[lambda event: steps.append(event.step)])
        assert not steps
        assert_same_solution(solution, uninterrupted)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"seed": 1}, "key"),
            ({"source": SOURCE + 1e-9}, "data"),
            ({"method": brenier.NCF(**(vars(METHOD) | {"learning_rate": 0.1}))}, "learning_rate"),
            ({"validation": 0.5}, "validation"),
            ({"steps": 300}, "planned"),
        ],
    )
    def test_refuses_another_run(self, tmp_path, change, word):
        with pytest.raises(Killed):
            fit(tmp_path / "run.ckpt", callbacks=[_die])
        before = (tmp_path / "run.ckpt").read_bytes()
        with pytest.raises(FileFormatError, match=f"another run: .*{word}"):
            fit(tmp_path / "run.ckpt", **change)
        assert (tmp_path / "run.ckpt").read_bytes() == before

    def test_refuses_a_map(self, tmp_path, uninterrupted):
        brenier.save(tmp_path / "map.brenier", uninterrupted)
        with pytest.raises(FileFormatError, match="is a map"):
            fit(tmp_path / "map.brenier")

    def test_unwritable_path_is_found_at_once(self, tmp_path):
        with pytest.raises(OutputError, match="does not exist"):
            fit(tmp_path / "missing" / "run.ckpt")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_killed_at_random_moments(self, tmp_path):
        """SIGKILL several times between and during writes; the end has the bits of one long run."""
        kills = python(
            tmp_path,
            """
            import json, os, random, signal, time
            import numpy as np
            import brenier

            def fit(checkpoint, out, callback):
                source, target = np.random.default_rng(0).normal(size=(2, 200, 2)) + 1.0
                problem = brenier.TransportProblem(source, 2.0 * target)
                method = brenier.NCF(
                    objective="energy", network="mlp", widths=(8,), optimizer="adam",
                    batch_size=32, collocation_size=16, steps=250,
                )
                solution = brenier.fit(
                    problem, method, validation=0.25, early_stopping=False,
                    checkpoint=checkpoint, checkpoint_every=0.0, callbacks=[callback],
                )
                brenier.save(out, solution)

            # jax starts its threads at the first use, so forks made before it are safe.
            def start(checkpoint, out, chunks):
                reports, reporter = os.pipe()
                child = os.fork()
                if child == 0:
                    left = iter(range(chunks - 1, -1, -1))

                    def report(event):
                        os.write(reporter, b".")
                        if not next(left):
                            time.sleep(600)  # however slow the parent is, it comes in time

                    fit(checkpoint, out, report)
                    os._exit(0)
                os.close(reporter)
                return child, open(reports, "rb", buffering=0)

            child, reports = start(None, "whole.brenier", 1000)
            assert len(reports.readall()) == 10
            assert os.waitpid(child, 0)[1] == 0
            moments, kills = random.Random(0), 0
            while True:
                # At most four of the ten, so that two are killed even where a child runs ahead of its parent.
                chunks = moments.randint(2, 3)
                child, reports = start("run.ckpt", "parts.brenier", chunks + 1)
                finished = not all(reports.read(1) for _ in range(chunks))
                if not finished:
                    time.sleep(moments.uniform(0.0, 0.02))
                    os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                kills += status == signal.SIGKILL
                if finished:
                    assert status == 0
                    break
            print(json.dumps(kills))
            """,
            # Every child compiles the same small programs.
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        assert kills >= 2
        whole, parts = (brenier.load(tmp_path / f"{name}.brenier") for name in ("whole", "parts"))
        assert_same_solution(parts, whole)


def _die(event):
    raise Killed
