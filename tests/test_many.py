"""Many problems at once: the same as one by one."""

import signal
import threading
import warnings

import jax
import numpy as np
import pytest

import brenier
from brenier import DIOTM, NCF, NCFTransport
from brenier.errors import InputError, UnsupportedProblemError
from brenier.run import Run

RNG = np.random.default_rng(0)
KEY = jax.random.key(5)
MATRICES = ([[1.5, 0.4], [0.4, 0.7]], [[0.5, 0.0], [0.0, 2.0]], [[1.0, -0.3], [-0.3, 1.0]])
# Of other sizes, as long as a batch has the same.
PROBLEMS = [
    brenier.TransportProblem(
        RNG.normal(size=(n, 2)), RNG.normal(size=(400, 2)) @ matrix + [3.0 * n, 0.0]
    )
    for n, matrix in zip((400, 500, 600), MATRICES, strict=True)
]
ENERGY = NCF(objective="energy", widths=(8,), batch_size=64, collocation_size=32, steps=60)
METHODS = {
    "energy": ENERGY,
    "dual": NCF(widths=(8,), batch_size=64, steps=60),
    "diotm": DIOTM(widths=(8,), map_widths=(8,), batch_size=64, steps=60),
    "hota": brenier.HOTA(
        widths=(8,), batch_size=64, pool=64, improved=32, refreshed=8, rollout_steps=4, steps=60
    ),
}


@pytest.fixture(autouse=True)
def short_runs_may_be_bad():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        yield


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """The stacks do not depend on the machine: two for the three problems, one of which has room left."""

    def are(count):
        monkeypatch.setattr("brenier.many._cores", lambda: count)

    are(2)
    return are


def assert_same(many, one):
    assert (many.status, many.info["steps"]) == (one.status, one.info["steps"])
    assert many.history.keys() == one.history.keys()
    np.testing.assert_allclose(many.history["loss"], one.history["loss"], rtol=1e-6, atol=1e-9)
    # Round-off of one step, grown over sixty.
    x = PROBLEMS[0].source.pool(100, 0)
    images = one.transport.forward(x)
    np.testing.assert_allclose(many.transport.forward(x), images, atol=1e-7 * np.abs(images).max())
    assert many.scores.keys() == one.scores.keys()


@pytest.mark.parametrize(
    "name", [n if n == "energy" else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_many_equal_one_by_one(name):
    together = brenier.fit_many(PROBLEMS, METHODS[name], key=KEY)
    assert len(together) == 3
    keys = jax.random.split(KEY, 3)
    for i in range(3) if name != "energy" else (1,):
        assert_same(together[i], brenier.fit(PROBLEMS[i], METHODS[name], key=keys[i]))


def test_what_the_smallest_is_small_enough_for_serves_all():
    x = np.random.default_rng(3).normal(size=(2, 2400, 2))
    problems = [brenier.TransportProblem(x[0, :n], x[1]) for n in (2400, 400)]
    found = [s.info["method"] for s in brenier.fit_many(problems, brenier.NCF(), key=KEY, steps=1)]
    # A quarter of the 360 that are not held out, as a multiple of 16.
    assert [m["batch_size"] for m in found] == [80, 80]
    assert [m["widths"] for m in found] == [(16, 16, 16)] * 2


def test_large_batches_are_fits_of_their_own(monkeypatch):
    monkeypatch.setattr("brenier.many._CACHED", 64)
    together = brenier.fit_many(PROBLEMS, ENERGY, key=KEY)
    key = jax.random.split(KEY, 3)[2]
    x = PROBLEMS[2].source.pool(100, 0)
    one = brenier.fit(PROBLEMS[2], ENERGY, key=key)
    np.testing.assert_array_equal(together[2].transport.forward(x), one.transport.forward(x))


def test_an_interrupt_ends_all_with_their_maps(monkeypatch):
    account, main = Run.account, threading.main_thread().ident

    def pressed(run, *done):
        if run.problem is PROBLEMS[1] and run.plan.step == 0:
            signal.pthread_kill(main, signal.SIGINT)
        account(run, *done)

    monkeypatch.setattr(Run, "account", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        solutions = brenier.fit_many(PROBLEMS, ENERGY, key=KEY, steps=10**6, validation=0.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert {s.status for s in solutions} == {"interrupted"}


def test_an_error_in_one_ends_all(monkeypatch):
    account = Run.account

    def breaks(run, *done):
        if run.problem is PROBLEMS[2]:
            raise ZeroDivisionError
        account(run, *done)

    monkeypatch.setattr(Run, "account", breaks)
    with pytest.raises(ZeroDivisionError):
        brenier.fit_many(PROBLEMS, ENERGY, key=KEY, steps=10**6, validation=0.0)


def test_each_stops_by_itself(cores):
    cores(1)
    # The second is solved by its linear start; the first has to learn.
    still = brenier.TransportProblem(RNG.normal(size=(400, 2)), RNG.normal(size=(400, 2)))
    moons = np.stack([np.cos(a := RNG.uniform(0, 3, 400)), np.sin(a)], axis=1)
    problems = [brenier.TransportProblem(still.source, 5.0 * moons), still]
    options = {"key": KEY, "steps": 300}
    learns, solved = brenier.fit_many(problems, ENERGY, **options)
    assert solved.status == "matched"
    assert solved.info["steps"] < learns.info["steps"]
    alone = brenier.fit(still, ENERGY, **options | {"key": jax.random.split(KEY, 2)[1]})
    assert_same(solved, alone)


def test_one_that_diverges_leaves_the_others_alone(monkeypatch, cores):
    cores(1)
    far = brenier.TransportProblem(PROBLEMS[0].source, PROBLEMS[0].target)
    step = type(ENERGY).step

    def breaks(self, problem, state, batch, key, progress):
        state, metrics = step(self, problem, state, batch, key, progress)
        # In the frame, the third problem's rows are the only ones beyond 50.
        bad = abs(batch[0]).max() > 50.0
        return state, metrics | {"loss": jax.numpy.where(bad, np.nan, metrics["loss"])}

    monkeypatch.setattr(type(ENERGY), "step", breaks)
    source = np.concatenate([RNG.normal(size=(4000, 2)), [[1e4, 0.0]]])
    outlier = brenier.TransportProblem(source, source)
    method = NCF(objective="energy", widths=(8,), batch_size=64, collocation_size=32, steps=75)
    good, bad = brenier.fit_many([far, outlier], method, key=KEY, validation=0.0)
    assert (good.status, bad.status) == ("completed", "diverged")
    assert np.isfinite(bad.transport.forward(source)).all()


@pytest.mark.parametrize(
    ("problems", "error", "message"),
    [
        ([], InputError, "at least one"),
        ([PROBLEMS[0], brenier.TransportProblem(np.eye(3), 2 * np.eye(3))], InputError, "3"),
        ([PROBLEMS[0], brenier.TransportProblem(np.eye(2), 2 * np.eye(2))], InputError, "number 1"),
        ([PROBLEMS[0].replace(noise=0.1)], UnsupportedProblemError, "noise"),
        ([PROBLEMS[0].replace(state_cost=lambda x: 0.0)], UnsupportedProblemError, "state_cost"),
    ],
)
def test_what_is_refused(problems, error, message):
    with pytest.raises(error, match=message):
        brenier.fit_many(problems, METHODS["energy" if error is InputError else "hota"])


@pytest.mark.slow
def test_the_bootstrap_finds_the_error_of_a_mean():
    """A map that can only shift is as uncertain as the difference of two means."""
    n, m = 500, 250
    x, y = RNG.normal(size=(n, 1)), RNG.normal(size=(m, 1)) * 3.0 + 1.0
    frozen = brenier.networks.with_zero_head(brenier.networks.MLP(1, (4,), key=jax.random.key(0)))
    options = {"objective": "energy", "network": frozen, "learning_rate": 1e-12, "steps": 2}
    est = NCFTransport(**options, bootstrap=100, random_state=0).fit(Xs=x, Xt=y)
    error = est.standard_error(Xs=x[:5])
    exact = np.sqrt(x.var() / n + y.var() / m)
    # The standard deviation of 100 values is known to 7 %.
    np.testing.assert_allclose(error, np.full((5, 1), exact), rtol=0.25)
    assert len(est.replicas_) == 100
    with pytest.raises(InputError, match="bootstrap >= 2"):
        NCFTransport(**options, random_state=0).fit(Xs=x, Xt=y).standard_error(x)


@pytest.mark.parametrize("bootstrap", [1, -1, 2.5, True])
def test_absurd_bootstraps(bootstrap):
    with pytest.raises(InputError, match="bootstrap"):
        NCFTransport(bootstrap=bootstrap).fit(Xs=np.eye(3), Xt=2 * np.eye(3))


def test_bootstrap_needs_rows():
    with pytest.raises(InputError, match="labels for bootstrap"):
        NCFTransport(bootstrap=2).fit(
            Xs=lambda key, n: jax.random.normal(key, (n, 2)), Xt=np.eye(2)
        )
