"""POT's face, scikit-learn's conventions."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import ParameterGrid

import brenier
from brenier import NCFTransport
from brenier.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 2))
Y = RNG.normal(size=(450, 2)) * [0.5, 1.5] + [2.0, 0.0]
Y[:, 0] += np.sign(Y[:, 0] - 2.0)  # two halves, which no linear map makes


def small(**changes):
    # The energy objective compiles in a fraction of the dual's time, and the face is the same.
    options = {"objective": "energy", "steps": 25, "batch_size": 64, "random_state": 0}
    return NCFTransport(**(options | changes))


@pytest.fixture(autouse=True)
def short_runs_may_be_bad():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        yield


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        return default().fit(Xs=X, Xt=Y)


def default():
    return small(objective=None, steps=150)


def test_maps_have_the_shape_and_type_of_their_input(fitted):
    for points in (X, X.astype(np.float32), X.tolist(), pd.DataFrame(X)):
        images = fitted.transform(Xs=points)
        assert isinstance(images, np.ndarray)
        assert images.shape == X.shape
    assert fitted.transform(X.astype(np.float32)).dtype == np.float32
    assert fitted.transform(X).dtype == np.float64
    assert fitted.transform(np.array([[1, 2]])).dtype == np.float64


def test_refined_maps_invert_each_other(fitted):
    y = Y[:200]
    plain = fitted.transform(fitted.inverse_transform(Xt=y))
    try:
        fitted.set_params(refine=True)
        refined = fitted.transform(fitted.inverse_transform(Xt=y))
    finally:
        fitted.set_params(refine=False)
    assert np.abs(refined - y).max() < 1e-3 < np.abs(plain - y).max()


def test_directions_and_times(fitted):
    images = fitted.transform(Xs=X)
    assert np.abs(images.mean(0) - Y.mean(0)).max() < 0.2
    assert np.abs(fitted.inverse_transform(Xt=Y).mean(0) - X.mean(0)).max() < 0.2
    np.testing.assert_allclose(fitted.interpolate(Xs=X, t=0.0), X)
    np.testing.assert_allclose(fitted.interpolate(Xs=X, t=1.0), images)
    np.testing.assert_allclose(fitted.interpolate(X), 0.5 * (X + images), atol=1e-6)
    assert fitted.score(Xs=X, Xt=Y) > small().fit(Xs=X, Xt=X).score(Xs=X, Xt=Y)


def test_keyword_or_position(fitted):
    again = default().fit(X, None, Y)
    np.testing.assert_array_equal(again.transform(X), fitted.transform(Xs=X))
    np.testing.assert_array_equal(again.inverse_transform(Y), fitted.inverse_transform(Xt=Y))
    images = small().fit(Xs=X, Xt=Y).transform(X)
    np.testing.assert_array_equal(small().fit_transform(Xs=X, Xt=Y), images)


def test_random_state():
    first, other = (small(random_state=i).fit(Xs=X, Xt=Y).transform(X) for i in range(2))
    assert not np.array_equal(first, other)
    state = [small(random_state=np.random.RandomState(3)).fit(Xs=X, Xt=Y) for _ in range(2)]
    np.testing.assert_array_equal(state[0].transform(X), state[1].transform(X))
    assert small(random_state=None).fit(Xs=X, Xt=Y).transform(X).shape == X.shape


def test_fit_does_not_touch_its_input():
    source, target = X.copy(), Y.copy()
    source.setflags(write=False)
    small().fit(Xs=source, Xt=np.asfortranarray(target))
    np.testing.assert_array_equal(source, X)
    np.testing.assert_array_equal(target, Y)


def test_unfitted_use_raises():
    for call in ("transform", "inverse_transform", "interpolate"):
        with pytest.raises(NotFittedError):
            getattr(NCFTransport(), call)(X)


def test_scikit_learn_conventions():
    est = small(gaussian_start=True)
    copy = clone(est)
    assert copy.get_params() == est.get_params()
    assert not hasattr(copy, "solution_")
    assert est.set_params(steps=7).steps == 7
    with pytest.raises(ValueError, match="Invalid parameter"):
        est.set_params(depth=3)
    restored = pickle.loads(pickle.dumps(est))
    assert restored.get_params() == est.get_params()
    assert "NCFTransport(" in repr(est)


@pytest.mark.slow
def test_a_grid_can_be_searched():
    # Two unpaired samples have no folds in common, so the grid is walked with held-out pairs.
    scores = [
        clone(small()).set_params(**options).fit(Xs=X[:300], Xt=Y[:300]).score(X[300:], Xt=Y[300:])
        for options in ParameterGrid({"learning_rate": [1e-9, 5e-3]})
    ]
    assert scores[1] > scores[0]


@pytest.mark.slow
def test_refitting_forgets():
    est = small().fit(Xs=X, Xt=Y)
    est.fit(Xs=np.column_stack([X, X[:, 0]]), Xt=np.column_stack([Y, Y[:, 0]]))
    assert est.n_features_in_ == 3
    assert est.transform(np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"Xs": X}, "Xt is missing"),
        ({"Xt": Y}, "Xs is missing"),
        ({"Xs": X, "Xt": Y, "ys": np.zeros(400)}, "none for the target"),
        ({"Xs": X, "Xt": Y, "yt": np.zeros(450)}, "none for the source"),
        ({"Xs": X, "Xt": Y, "ys": np.zeros(400), "yt": np.ones(450)}, "0, 1 on one side only"),
        ({"Xs": X[:, 0], "Xt": Y}, "reshape"),
        ({"Xs": X, "Xt": Y[:, :1]}, "same dimension"),
        ({"Xs": np.where(X > 2, np.nan, X), "Xt": Y}, "Xs has NaN"),
        ({"Xs": X[:1], "Xt": Y}, "Xs with at least 2"),
        ({"Xs": X[:0], "Xt": Y}, "Xs with at least 2"),
        ({"Xs": np.ones((9, 2)), "Xt": Y}, "equal"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(InputError, match=message):
        small().fit(**data)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"learning_rate": 0.0},
        {"validation": 2.0},
        {"preset": "x"},
        {"time_budget": -3},
    ],
)
def test_bad_options(options):
    with pytest.raises(InputError):
        small(**options).fit(Xs=X, Xt=Y)


def test_bad_points(fitted):
    with pytest.raises(InputError, match="2 columns"):
        fitted.transform(np.zeros((3, 4)))
    with pytest.raises(InputError, match="between 0"):
        fitted.interpolate(X, t=1.5)
    assert fitted.transform(np.zeros((0, 2))).shape == (0, 2)


def test_five_points():
    est = small().fit(Xs=X[:5], Xt=Y[:5])
    assert est.solution_.scores == {}
    assert np.isfinite(est.transform(X)).all()
