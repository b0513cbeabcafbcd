"""Class labels: what is accepted, how batches are drawn, and that classes are kept."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.classes import ClassSampler, check_labels
from brenier.discrepancies import classwise_energy_distance, energy_distance
from brenier.errors import BrenierWarning, InputError, UnsupportedProblemError
from brenier.metrics import crossing_share
from brenier.samplers import ArraySampler

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
CENTERS = np.array([[0.0, 3.0], [-3.0, -2.0], [3.0, -2.0]])
NAMES = np.array(["cat", "dog", "eel"])
AWAY = CENTERS[[1, 2, 0]]  # every class goes where another one came from


def blobs(centers, counts):
    rows = [c + 0.3 * RNG.normal(size=(n, 2)) for c, n in zip(centers, counts, strict=True)]
    return np.concatenate(rows), np.repeat(NAMES, counts)


X, XS = blobs(CENTERS, (300, 200, 100))
Y, YS = blobs(AWAY, (100, 100, 400))


def kept(points, centers, labels):
    """The share of points nearest to the centre of their own class."""
    nearest = np.argmin(np.sum((points[:, None] - centers) ** 2, axis=-1), axis=1)
    return float(np.mean(NAMES[nearest] == labels))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        (np.array([1.0, -1.0, 3.0]), [1, -1, 3]),
        (np.array([True, False, True]), [1, 0, 1]),
        (np.array(["a", "b", "a"]), ["a", "b", "a"]),
        (np.array(["a", 2, "a"], object), ["a", 2, "a"]),
        (np.array([5, 6, 7], np.uint8), [5, 6, 7]),
        (jnp.array([5, 6, 7]), [5, 6, 7]),
    ],
)
def test_labels_are_accepted(labels, expected):
    found = check_labels(labels, 3).tolist()
    assert found == expected
    assert [type(label) for label in found] == [type(label) for label in expected]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "one label for each of the 3 points"),
        ([[0], [1], [2]], "shape"),
        ([0.5, 1.0, 2.0], r"found 0\.5 in row 0"),
        ([0.0, np.nan, 1.0], "row 1"),
        (np.array(["a", None, "b"], object), "found None in row 1"),
    ],
)
def test_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        check_labels(labels, 3, "ys")


def problem(x=X, xs=XS, y=Y, ys=YS):
    return brenier.TransportProblem(x, y, source_labels=xs, target_labels=ys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xs": None}, "none for the source"),
        ({"ys": None}, "none for the target"),
        ({"ys": np.where(YS == "eel", "fox", YS)}, "the classes 'eel', 'fox' on one side only"),
        ({"xs": np.where(XS == "eel", "dog", XS)}, "class 'eel' on one side only"),
        ({"xs": np.where(np.arange(600) == 0, "fox", XS)}, "2 points of every class, found 1 of"),
        ({"xs": np.full(600, -1)}, "leave the labels of both"),
        ({"xs": XS[:-1]}, "source_labels with one label for each of the 600"),
        ({"x": lambda key, n: jax.random.normal(key, (n, 2))}, "load it first"),
    ],
)
def test_problems_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        problem(**changes)


def test_a_side_cannot_lose_its_labels():
    with pytest.raises(InputError, match="both sides"):
        problem().replace(source=X)
    assert problem().replace(noise=0.1).classes == ("cat", "dog", "eel")


def test_numbers_and_strings_are_different_classes():
    with pytest.raises(InputError, match="0, 1, '0', '1'"):
        problem(X[:4], [0, 0, 1, 1], Y[:4], ["0", "0", "1", "1"])
    assert problem(X[:4], [0, 0, 1, 1], Y[:4], [1.0, 1.0, 0.0, 0.0]).classes == (0, 1)


def test_unlabelled_points_are_left_out():
    labels = np.where(np.arange(600) < 250, np.searchsorted(NAMES, XS), -1)
    with pytest.warns(BrenierWarning, match="350 of 600 points of source have no label"):
        found = brenier.TransportProblem(
            X,
            Y,
            source_labels=np.where(labels == -1, -1, labels % 2 + np.arange(600) % 2),
            target_labels=np.arange(600) % 2,
        )
    assert found.source.size == 250
    assert found.target.size == 600


def test_other_methods_refuse_labels():
    for method in (brenier.HOTA(), brenier.DIOTM()):
        with pytest.raises(UnsupportedProblemError, match=r"brenier\.NCF"):
            method.check(problem())
    with pytest.raises(InputError, match="two points of each of 3 classes"):
        brenier.NCF(batch_size=5).check(problem())
    with pytest.raises(UnsupportedProblemError, match="knows no classes"):
        brenier.DIOTMTransport().fit(Xs=X, ys=XS, Xt=Y, yt=YS)


class TestSampler:
    def sampler(self):
        return problem().source

    def test_a_batch_has_a_block_of_each_class(self):
        sampler = self.sampler()
        assert sampler.classes == ("cat", "dog", "eel")
        assert (sampler.size, sampler.evenly, sampler.batch(100)) == (600, 300, 99)
        for stratified in (False, True):
            batches = np.asarray(sampler.draw(KEY, 0, 2, 100, stratified=stratified))
            assert batches.shape == (2, 99, 2)
            for batch in batches:
                assert kept(batch, CENTERS, np.repeat(NAMES, 33)) == 1.0
                assert len(np.unique(batch, axis=0)) == 99
        np.testing.assert_array_equal(batches[1], sampler.draw(KEY, 1, 1, 100, stratified=True)[0])

    def test_small_classes_are_repeated(self):
        batch = np.asarray(self.sampler().draw(KEY, 0, 1, 600))[0]
        assert batch.shape == (600, 2)
        eels = batch[400:]
        assert len(np.unique(eels, axis=0)) == 100
        assert set(np.unique(eels, axis=0, return_counts=True)[1]) == {2}
        assert self.sampler().batch(10**6) == 900  # nothing larger than the largest class

    def test_held_out_points_are_of_all_classes(self):
        rest, held_out = self.sampler().split(30, 0)
        assert isinstance(rest, ClassSampler)
        assert (rest.size, held_out.shape) == (570, (30, 2))
        assert kept(held_out, CENTERS, np.repeat(NAMES, 10)) == 1.0
        everything = np.concatenate([held_out, rest.pool(10**6, 0)])
        np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(X, axis=0))

    def test_coordinates_blocks_and_digest(self):
        sampler = self.sampler()
        moved = sampler.encoded(lambda x: 2 * x, np.float32)
        assert moved.classes == sampler.classes
        np.testing.assert_allclose(moved.blocks(30), 2 * sampler.blocks(30), rtol=1e-6)
        swapped = problem(xs=XS[::-1], ys=YS).source
        assert len({sampler.digest(), moved.digest(), swapped.digest()}) == 3
        assert ArraySampler(X).evenly == 600


def test_classwise_energy_distance():
    x, y = (jnp.asarray(RNG.normal(size=(n, 2))) for n in (12, 18))
    found = classwise_energy_distance(x, y, 3)
    alone = [energy_distance(x[4 * k : 4 * k + 4], y[6 * k : 6 * k + 6]) for k in range(3)]
    np.testing.assert_allclose(found, alone, rtol=1e-12)
    np.testing.assert_allclose(classwise_energy_distance(x, y, 1), [energy_distance(x, y)])


@pytest.mark.parametrize("pairs", [60 * 60, 30 * 60])  # all of the batch, half of each class
def test_feet_stay_in_their_class(monkeypatch, pairs):
    """Where another class has a deeper valley, the minimum over all points would lie there."""
    monkeypatch.setattr("brenier.methods.ncf._PAIRS", pairs)
    x, y = (jnp.asarray(side.blocks(60)) for side in (problem().source, problem().target))
    downwards = SimpleNamespace(start=lambda t, x: 2.0 * x[1])
    given = (downwards, x, 2.0 * x[:, 1], brenier.costs.Quadratic(), y, y, jnp.asarray(0.05))
    feet = {classes: brenier.NCF()._feet(*given, classes)[0] for classes in (0, 3)}
    own = jnp.arange(60) // 20
    nearest = {
        k: jnp.argmin(jnp.sum((x[:, None] - f[None]) ** 2, -1), 0) // 20 for k, f in feet.items()
    }
    assert jnp.mean(nearest[0] == own) < 0.5
    assert jnp.all(nearest[3] == own)


@pytest.fixture(
    scope="module", params=[pytest.param(o, marks=pytest.mark.slow) for o in ("energy", "dual")]
)
def solution(request):
    options = {"objective": request.param, "batch_size": 192, "learning_rate": 1e-2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrenierWarning)
        est = brenier.NCFTransport(random_state=0, validation=0.2, steps=200, **options)
        return est.fit(Xs=X, ys=XS, Xt=Y, yt=YS).solution_


def test_classes_are_kept(solution):
    x, xs = blobs(CENTERS, (200, 200, 200))
    y, ys = blobs(AWAY, (200, 200, 200))
    assert kept(solution.transport.forward(x), AWAY, xs) > 0.95
    assert kept(solution.transport.inverse(y), CENTERS, ys) > 0.95
    if solution.info["method"]["objective"] == "dual":
        for points, images, labels in (
            (x, solution.transport.forward(x), xs),
            (y, solution.transport.inverse(y), ys),
        ):
            for name in NAMES:
                assert crossing_share(points[labels == name], images[labels == name]) == 0.0


def test_scores_by_class(solution):
    classes = solution.info["classes"]
    assert list(classes) == list(NAMES)
    names = {
        f"{what}_{way}" for what in ("energy", "band", "kept") for way in ("forward", "backward")
    }
    assert all(set(scores) == names for scores in classes.values())
    mean = np.mean([scores["energy_forward"] for scores in classes.values()])
    assert mean == pytest.approx(solution.scores["energy_forward"], rel=1e-4)
    assert min(scores["kept_forward"] for scores in classes.values()) > 0.8
