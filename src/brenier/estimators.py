"""Transport maps with scikit-learn's and POT's face: numpy in, numpy out."""

from __future__ import annotations

import abc
import dataclasses
import numbers
from typing import Any, Self

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from brenier.certificate import Certificate
from brenier.errors import InputError
from brenier.fit import fit
from brenier.many import fit_many
from brenier.methods import DIOTM, HOTA, NCF, Method
from brenier.problem import TransportProblem
from brenier.samplers import ArraySampler, check_points
from brenier.solution import Solution
from brenier.transport import Transport
from brenier.typing import Key


class TransportEstimator(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """What all estimators share: POT's keywords, scikit-learn's conventions, NumPy in and out."""

    solution_: Solution
    replicas_: list[Transport]
    n_features_in_: int

    steps: int | None
    validation: float
    time_budget: float | None
    random_state: int | np.random.RandomState | None
    callbacks: tuple[Any, ...]

    @abc.abstractmethod
    def _method(self) -> Method[Any]:
        """The method with this estimator's options."""

    def _problem(self, source: Any, target: Any, **labels: Any) -> TransportProblem:
        return TransportProblem(source, target, **labels)

    @property
    def _stops_early(self) -> bool:
        return True

    @property
    def _bootstrap(self) -> int:
        """Replicas of the fit on samples drawn again."""
        return 0

    def fit(self, Xs: Any = None, ys: Any = None, Xt: Any = None, yt: Any = None) -> Self:
        """Fit the map from `Xs` (n, d) to `Xt` (m, d).

        With labels `ys` (n,) and `yt` (m,), whole numbers or strings, each class is moved onto the class of the same
        label. Every class counts alike, whatever its share of the points is; -1 stands for no label, and such points
        are left out.

        Raises:
            InputError: data, labels or options that cannot be used; a class on one side only.
            UnsupportedProblemError: labels for a method that knows no classes.
            DivergenceError: the fit diverged.
        """
        if Xs is None or Xt is None:
            missing = "Xs" if Xs is None else "Xt"
            raise InputError(f"fit needs both Xs and Xt; {missing} is missing.")
        method = self._method()
        seed = self.random_state
        if not isinstance(seed, numbers.Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        sides = _points_or_source(Xs, "Xs"), _points_or_source(Xt, "Xt")
        labels = {"source_labels": ys, "target_labels": yt}
        problem = self._problem(*sides, **labels)
        key = jax.random.key(int(seed))
        replicas = self._replicas(problem, key)
        self.solution_ = fit(
            problem,
            method,
            key=key,
            steps=None if self.time_budget is None else self.steps,
            time_budget=self.time_budget,
            validation=self.validation,
            early_stopping=self._stops_early,
            callbacks=self.callbacks,
        )
        self.replicas_ = []
        if replicas:
            # As long as the map itself took, with all the points: there is nothing to choose.
            options = {"steps": self.solution_.info["steps"], "validation": 0.0}
            solutions = fit_many(replicas, method, key=jax.random.fold_in(key, 1), **options)
            self.replicas_ = [solution.transport for solution in solutions]
        self.n_features_in_ = problem.dim
        return self

    def _replicas(self, problem: TransportProblem, key: Key) -> list[TransportProblem]:
        """The problem with the rows of both sides drawn again, with replacement, for each replica."""
        count = self._bootstrap
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count in (-1, 1):
            raise InputError(f"Expected bootstrap to be 0 or a whole number >= 2, found {count!r}.")
        if not count:
            return []
        source, target = problem.source, problem.target
        if not (isinstance(source, ArraySampler) and isinstance(target, ArraySampler)):
            raise InputError(
                "Expected arrays without labels for bootstrap, whose rows can be drawn again; found files, functions "
                "or labelled points."
            )
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

        def again(rows: np.ndarray) -> np.ndarray:
            return rows[rng.integers(len(rows), size=len(rows))]

        return [
            problem.replace(source=again(source.array), target=again(target.array))
            for _ in range(count)
        ]

    def standard_error(self, Xs: Any) -> np.ndarray:
        """How uncertain `transform(Xs)` is: the standard deviation of its coordinates over the bootstrap, shape (n, d).

        It says what other samples of the same sizes would have changed, not how far the method is from the optimal map.

        Raises:
            InputError: fitted with `bootstrap=0`.

        References:
            Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 6.
        """
        points = self._points(Xs, "Xs")
        if not self.replicas_:
            raise InputError("Expected a fit with bootstrap >= 2, found none; try bootstrap=32.")
        return np.std([replica.forward(points) for replica in self.replicas_], axis=0, ddof=1)

    def transform(self, Xs: Any) -> np.ndarray:
        """Where source points (n, d) go: `T(Xs)`."""
        return self._transport.forward(self._points(Xs, "Xs"))

    def inverse_transform(self, Xt: Any) -> np.ndarray:
        """Where target points (n, d) come from: `S(Xt)`."""
        return self._transport.inverse(self._points(Xt, "Xt"))

    def fit_transform(  # type: ignore[override]  # POT's signature, not scikit-learn's
        self, Xs: Any = None, ys: Any = None, Xt: Any = None, yt: Any = None
    ) -> np.ndarray:
        """`fit` and then `transform(Xs)`."""
        return self.fit(Xs, ys, Xt, yt).transform(Xs)

    def interpolate(self, Xs: Any, t: float = 0.5) -> np.ndarray:
        """Where source points (n, d) are at time `t` in [0, 1]."""
        return self._transport.interpolate(self._points(Xs, "Xs"), t)

    def trajectory(self, Xs: Any, times: Any) -> np.ndarray:
        """Where source points (n, d) are at each of `times`, shape (len(times), n, d)."""
        return self._transport.trajectory(self._points(Xs, "Xs"), times)

    def score(self, Xs: Any, ys: Any = None, Xt: Any = None, yt: Any = None) -> float:
        """Minus the energy distance between `transform(Xs)` and `Xt`: greater is better."""
        from brenier.discrepancies import energy_distance

        if Xt is None:
            raise InputError("score needs both Xs and Xt; Xt is missing.")
        images, target = self.transform(Xs), self._points(Xt, "Xt")
        dtype = np.promote_types(images.dtype, target.dtype)
        return -float(energy_distance(images.astype(dtype), target.astype(dtype)))

    def certificate(self, Xs: Any = None, Xt: Any = None, **options: Any) -> Certificate:
        """Bounds on the optimal cost from samples that were held out; see `brenier.certificate`.

        Its `lower`, `upper`, `gap` and `exact` are the bounds, their relative distance and the discrete optimum.
        """
        if Xs is None or Xt is None:
            missing = "Xs" if Xs is None else "Xt"
            raise InputError(f"certificate needs both Xs and Xt; {missing} is missing.")
        Xs, Xt = self._points(Xs, "Xs"), self._points(Xt, "Xt")
        return self.solution_.certificate(Xs, Xt, **self._known, **options)

    @property
    def _known(self) -> dict[str, Any]:
        """What a certificate must be told of the problem beyond the solution."""
        return {}

    @property
    def _transport(self) -> Any:
        check_is_fitted(self, "solution_")
        return self.solution_.transport

    def _points(self, X: Any, name: str) -> np.ndarray:
        check_is_fitted(self, "solution_")
        X = check_points(X, name, min_points=0)
        if X.shape[1] != self.n_features_in_:
            raise InputError(
                f"Expected {name} with {self.n_features_in_} columns, as in fit; found {X.shape[1]}."
            )
        return X


class NCFTransport(TransportEstimator):
    """The optimal transport map between two samples, forward, backward and at every moment between.

    The estimator behind `brenier.NCF`, with the keywords of POT's `BaseTransport`.

    Args:
        preset: "default", or "published" for the paper's recipe; options left at `None` take its values.
        objective: "dual" (our default) or "energy"; see `brenier.NCF`.
        cost: one of `brenier.costs`; quadratic by default.
        steps: optimiser steps planned; early stopping may end sooner.
        batch_size: samples a side and step; by dimension where left out.
        learning_rate: peak step size.
        network: "dense_quadratic", "mlp", "resnet" or an equinox module `u(t, x)`.
        optimizer: "muon", "adam" or an optax transformation.
        gaussian_start: start from the linear optimal map.
        validation: share of the samples held out for early stopping and scores.
        early_stopping: stop once the held-out energy distance is within its noise band or stalls.
        bootstrap: fit this many times more, all at once, on samples drawn from the given ones with replacement: for
            `standard_error`. Their time comes on top of a time budget.
        refine: whether points are moved along lines that are solved for, so that none cross, some fifty times as slow;
            see `CharacteristicTransport.refined`. The fit is the same; not with labels.
        time_budget: seconds for the whole fit, compilation included.
        random_state: an int reproduces bits on the same machine; `None` draws a new seed.
        callbacks: each called with a `brenier.callbacks.Event` after every chunk of steps.

    Attributes:
        solution_: the `brenier.Solution` of the fit.
        replicas_: the maps of the bootstrap.
        n_features_in_: dimension of the points.

    Example:
        >>> est = NCFTransport(random_state=0).fit(Xs=X, Xt=Y)
        >>> Z = est.transform(Xs=X)
        >>> halfway = est.interpolate(Xs=X, t=0.5)

    References:
        Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*, ICLR 2026.
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        objective: str | None = None,
        cost: Any = None,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        network: str | eqx.Module | None = None,
        optimizer: str | optax.GradientTransformation | None = None,
        gaussian_start: bool = False,
        validation: float = 0.1,
        early_stopping: bool = True,
        bootstrap: int = 0,
        refine: bool = False,
        time_budget: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        callbacks: tuple[Any, ...] = (),
    ):
        self.preset = preset
        self.objective = objective
        self.cost = cost
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.network = network
        self.optimizer = optimizer
        self.gaussian_start = gaussian_start
        self.validation = validation
        self.early_stopping = early_stopping
        self.bootstrap = bootstrap
        self.refine = refine
        self.time_budget = time_budget
        self.random_state = random_state
        self.callbacks = callbacks

    def _method(self) -> NCF:
        return NCF(**_options(self, NCF))

    def _problem(self, source: Any, target: Any, **labels: Any) -> TransportProblem:
        return TransportProblem(source, target, self.cost, **labels)

    @property
    def _stops_early(self) -> bool:
        return self.early_stopping

    @property
    def _bootstrap(self) -> int:
        return self.bootstrap

    @property
    def _transport(self) -> Any:
        transport = super()._transport
        return self.solution_.refined() if self.refine else transport


class HOTATransport(TransportEstimator):
    """Transport around obstacles and with noise, forward, backward and at every moment between.

    The estimator behind `brenier.HOTA`.

    Args:
        state_cost: the price `U(x) >= 0` per unit time of being at `x`: a function of one point, JAX or not, a shape or
            list of shapes, or any `brenier.state_costs.StateCost`.
        noise: `σ >= 0`. With noise the map is random and has no inverse.
        drift: `f(t, x)`, where points go by themselves, of a time and one point (d,); in JAX.
        preset: "default", or "published" for the paper's recipe; options left at `None` take its values.
        steps: optimiser steps.
        batch_size: samples a side and step.
        learning_rate: of Adam.
        network: "film", "mlp" or an equinox module `u(t, x)`.
        control_weight: of the Hamilton–Jacobi equation against the match at the end.
        acceleration_weight: of the penalty on turning.
        gaussian_start: start from the Schrödinger bridge between Gaussians with the samples' moments.
        search: whether ways around an obstacle in the plane are looked for on a grid first: for mazes and floor plans.
        validation: share of the samples held out for scores.
        time_budget: seconds for the whole fit, compilation included.
        random_state: an int reproduces bits on the same machine; `None` draws a new seed.
        callbacks: each called with a `brenier.callbacks.Event` after every chunk of steps.

    Attributes:
        solution_: the `brenier.Solution` of the fit.
        n_features_in_: dimension of the points.

    Example:
        >>> wall = brenier.state_costs.Wall(0, -0.1, 0.1, gaps=[(-0.25, 0.25)])
        >>> est = HOTATransport(state_cost=wall, random_state=0).fit(Xs=X, Xt=Y)
        >>> path = est.trajectory(Xs=X, times=np.linspace(0, 1, 50))

    References:
        Buzun, Shlenskii, Bobrin and Dylov, *HOTA: Hamiltonian framework for Optimal Transport Advection*, ICLR 2026.
    """

    def __init__(
        self,
        state_cost: Any = None,
        noise: float = 0.0,
        *,
        drift: Any = None,
        preset: str = "default",
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        network: str | eqx.Module | None = None,
        control_weight: float | None = None,
        acceleration_weight: float = 0.0,
        gaussian_start: bool = False,
        search: bool = False,
        validation: float = 0.1,
        time_budget: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        callbacks: tuple[Any, ...] = (),
    ):
        self.state_cost = state_cost
        self.noise = noise
        self.drift = drift
        self.preset = preset
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.network = network
        self.control_weight = control_weight
        self.acceleration_weight = acceleration_weight
        self.gaussian_start = gaussian_start
        self.search = search
        self.validation = validation
        self.time_budget = time_budget
        self.random_state = random_state
        self.callbacks = callbacks

    def _method(self) -> HOTA:
        return HOTA(**_options(self, HOTA))

    def _problem(self, source: Any, target: Any, **labels: Any) -> TransportProblem:
        return TransportProblem(
            source,
            target,
            state_cost=self.state_cost,
            noise=self.noise,
            drift=self.drift,
            **labels,
        )

    @property
    def _known(self) -> dict[str, Any]:
        return {"state_cost": self.state_cost}


class DIOTMTransport(TransportEstimator):
    """The optimal map between two samples and its inverse as networks of their own: one pass each.

    The estimator behind `brenier.DIOTM`.

    Args:
        preset: "default", "published" for the paper's recipe, or "otm" without interpolation and regulariser;
            options left at `None` take its values.
        steps: optimiser steps of the potential.
        batch_size: samples a side and step.
        learning_rate: of Adam.
        network: of the potential: "dense_quadratic", "mlp" or an equinox module `u(t, x)`.
        map_network: an equinox module `x -> T(x)` for both maps.
        hj_weight: of the Hamilton–Jacobi residual.
        gaussian_start: start the maps at the linear optimal map.
        validation: share of the samples held out for scores.
        bootstrap: fit this many times more, all at once, on samples drawn from the given ones with replacement: for
            `standard_error`. Their time comes on top of a time budget.
        time_budget: seconds for the whole fit, compilation included.
        random_state: an int reproduces bits on the same machine; `None` draws a new seed.
        callbacks: each called with a `brenier.callbacks.Event` after every chunk of steps.

    Attributes:
        solution_: the `brenier.Solution` of the fit.
        replicas_: the maps of the bootstrap.
        n_features_in_: dimension of the points.

    Example:
        >>> est = DIOTMTransport(random_state=0).fit(Xs=X, Xt=Y)
        >>> Z = est.transform(Xs=X)

    References:
        Choi, Chen and Choi, *Improving Neural Optimal Transport via Displacement Interpolation*, ICLR 2025.
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        network: str | eqx.Module | None = None,
        map_network: eqx.Module | None = None,
        hj_weight: float | None = None,
        gaussian_start: bool = False,
        validation: float = 0.1,
        bootstrap: int = 0,
        time_budget: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        callbacks: tuple[Any, ...] = (),
    ):
        self.preset = preset
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.network = network
        self.map_network = map_network
        self.hj_weight = hj_weight
        self.gaussian_start = gaussian_start
        self.validation = validation
        self.bootstrap = bootstrap
        self.time_budget = time_budget
        self.random_state = random_state
        self.callbacks = callbacks

    def _method(self) -> DIOTM:
        return DIOTM(**_options(self, DIOTM))

    @property
    def _bootstrap(self) -> int:
        return self.bootstrap


def _options(estimator: BaseEstimator, method: type) -> dict[str, Any]:
    """Those of the estimator's parameters that are the method's."""
    fields = {field.name for field in dataclasses.fields(method)}
    given = estimator.get_params(deep=False)
    return {name: value for name, value in given.items() if name in fields}


def _points_or_source(X: Any, name: str) -> Any:
    """Arrays are checked under the name the user typed; paths, memory maps and functions pass through."""
    if callable(X) or isinstance(X, str | np.memmap) or hasattr(X, "__fspath__"):
        return X
    return check_points(X, name, min_points=2)
