"""The continuous Wasserstein-2 benchmark in high dimension: three Gaussians to about ten modes."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brenier.datasets._gradients import (
    AnyArray,
    ConvexPotential,
    Mixture,
    gradient_problem,
    namespace,
)
from brenier.datasets.exact import ExactProblem
from brenier.errors import FileFormatError, InputError

_NETWORKS = ("v1", "v2")
_LAYERS = range(3)


def w2_benchmark(folder: str | os.PathLike[str], dim: int) -> ExactProblem:
    """A pair of the Wasserstein-2 benchmark, read from `mix3tomix10_d{dim}.npz`.

    The source is an equal mixture of three Gaussians. The target is its image under

        T(x) = a (∇v₁(x) + ∇v₂(x) + t),    v(x) = w · h₂(x) + (λ/2) |x|²,
        h₀ = q₀(x),    h_l = celu(W_l h_{l-1} + q_l(x)),    q_l(x) = (Q_lᵀ x)² + L_l x + b_l,

    where the networks v₁, v₂ with `W, w ≥ 0` are convex. Both sides have mean zero and total
    variance d. The forward map is exact up to the float32 weights of the file, evaluated in float64.
    The inverse is found by Newton's method, to 1e-10 at points of the target; where the point
    behind the target's is known, `forward` of source samples is cheaper. The cost is an average
    over fixed samples, with a relative standard error of 0.1 %; it takes seconds when it is first
    read.

    Args:
        folder: where the files are.
        dim: dimension d of the points.

    Raises:
        InputError: there is no such folder, or no file for this dimension in it.
        FileFormatError: the file is damaged or its networks are not convex.

    Example:
        >>> exact = w2_benchmark("w2_benchmark", 8)  # doctest: +SKIP
        >>> exact.target(jax.random.key(0), 100).shape  # doctest: +SKIP
        (100, 8)

    Reference:
        Korotin et al. 2021, "Do Neural Optimal Transport Solvers Work? A Continuous Wasserstein-2
        Benchmark", section 4 and appendix B; the constants a and t are the file's.
    """
    arrays = _read(_path(Path(folder), dim), dim)
    spread = arrays["component_std"]
    source = Mixture(arrays["component_means"], spread * arrays["component_maps"])
    networks = tuple(_ConvexNetwork.of(arrays, name) for name in _NETWORKS)
    map_ = _BenchmarkPotential(networks, float(arrays["map_scale"]), arrays["map_shift"])
    moments = arrays["target_mean"], arrays["target_cov"]
    return gradient_problem(f"w2_benchmark_{dim}", source, map_, moments)


@dataclass(frozen=True)
class _ConvexNetwork(ConvexPotential):
    """`v`, with a list per kind of array and the shapes of the file: `Q` (d, h), `L` (h, d), `W` (h', h)."""

    quadratic: list[np.ndarray]
    linear: list[np.ndarray]
    biases: list[np.ndarray]
    hidden: list[np.ndarray]
    final: np.ndarray
    strong_convexity: float

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], name: str) -> _ConvexNetwork:
        return cls(
            quadratic=[arrays[f"{name}.quad.{i}"] for i in _LAYERS],
            linear=[arrays[f"{name}.lin.{i}"] for i in _LAYERS],
            biases=[arrays[f"{name}.bias.{i}"] for i in _LAYERS],
            hidden=[arrays[f"{name}.convex.{i}"] for i in _LAYERS[1:]],
            final=arrays[f"{name}.final"],
            strong_convexity=float(arrays["strong_convexity"]),
        )

    @property
    def width(self) -> int:
        return max(max(Q.shape) for Q in self.quadratic)

    def gradient(self, x: AnyArray) -> AnyArray:
        projected, _, pulled = self._backward(x)
        result = self.strong_convexity * x
        for p, g, Q, L in zip(projected, pulled, self.quadratic, self.linear, strict=True):
            result = result + 2 * (p * g) @ Q.T.astype(x.dtype) + g @ L.astype(x.dtype)
        return result

    def hessian(self, x: np.ndarray) -> np.ndarray:
        projected, active, pulled = self._backward(x)
        result = self.strong_convexity * np.eye(x.shape[1])
        for g, Q in zip(pulled, self.quadratic, strict=True):
            result = result + (2 * Q * g[:, None, :]) @ Q.T
        jacobian = 0.0
        for i, (p, Q, L) in enumerate(zip(projected, self.quadratic, self.linear, strict=True)):
            # of what enters the activation of layer i, shape (n, h, d)
            own = 2 * p[:, :, None] * Q.T + L
            if i == 0:
                jacobian = own
                continue
            entering = self.hidden[i - 1] @ jacobian + own
            a = active[i - 1]
            # celu' equals celu'' below zero, and celu'' vanishes above
            bent = np.where(a < 0, pulled[i], 0.0)
            result = result + np.swapaxes(entering * bent[:, :, None], 1, 2) @ entering
            jacobian = np.exp(np.minimum(a, 0.0))[:, :, None] * entering
        return result

    def _backward(self, x: AnyArray) -> tuple[list[AnyArray], list[AnyArray], list[AnyArray]]:
        """`Q_lᵀ x`, what enters the activations, and the derivatives of `v` by `q_l`."""
        xp = namespace(x)
        projected = [x @ Q.astype(x.dtype) for Q in self.quadratic]
        skips = [
            p**2 + x @ L.T.astype(x.dtype) + b.astype(x.dtype)[None, :]
            for p, L, b in zip(projected, self.linear, self.biases, strict=True)
        ]
        h, active = skips[0], []
        for W, q in zip(self.hidden, skips[1:], strict=True):
            a = h @ W.T.astype(x.dtype) + q
            h = xp.maximum(a, 0.0) + xp.expm1(xp.minimum(a, 0.0))
            active.append(a)
        g = xp.broadcast_to(self.final.astype(x.dtype), h.shape)
        pulled = []
        for W, a in zip(self.hidden[::-1], active[::-1], strict=True):
            g = g * xp.exp(xp.minimum(a, 0.0))
            pulled.append(g)
            g = g @ W.astype(x.dtype)
        return projected, active, [g, *pulled[::-1]]


@dataclass(frozen=True)
class _BenchmarkPotential(ConvexPotential):
    """`a (v₁(x) + v₂(x) + ⟨t, x⟩)`."""

    networks: tuple[_ConvexNetwork, ...]
    scale: float
    shift: np.ndarray

    @property
    def width(self) -> int:
        return max(v.width for v in self.networks)

    def gradient(self, x: AnyArray) -> AnyArray:
        total = self.networks[0].gradient(x)
        for v in self.networks[1:]:
            total = total + v.gradient(x)
        return self.scale * (total + self.shift.astype(x.dtype)[None, :])

    def hessian(self, x: np.ndarray) -> np.ndarray:
        return self.scale * np.sum([v.hessian(x) for v in self.networks], axis=0)


def _path(folder: Path, dim: int) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"'{folder}' is not a folder; expected the one that holds mix3tomix10_d{dim}.npz."
        )
    path = folder / f"mix3tomix10_d{dim}.npz"
    if not path.is_file():
        matches = (re.fullmatch(r"mix3tomix10_d(\d+)\.npz", p.name) for p in folder.iterdir())
        dims = sorted(int(m[1]) for m in matches if m)
        found = f"dimensions {', '.join(map(str, dims))}" if dims else "no file of the benchmark"
        raise InputError(f"Expected dimension {dim} in '{folder}', found {found}.")
    return path


def _read(path: Path, dim: int) -> dict[str, np.ndarray]:
    """The arrays of a file that the map needs, checked, in float64."""
    hint = "restore a copy of the benchmark's file"
    try:
        # opened here, because np.load leaves a file that it cannot read open
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            shapes = _shapes(dim, *(int(h) for h in file["hidden_sizes"]))
            arrays = {name: np.asarray(file[name], np.float64) for name in shapes}
    except KeyError as error:
        raise FileFormatError(f"'{path}' has no array {error}; {hint}.") from error
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"Cannot read '{path}' ({error}); {hint}.") from error
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise FileFormatError(
                f"Expected '{name}' of shape {shape} and finite in '{path}', "
                f"found shape {arrays[name].shape}; {hint}."
            )
    signed = [n for n in shapes if ".convex." in n or n.endswith(".final")]
    positive = [n for n in shapes if n in ("component_std", "map_scale", "strong_convexity")]
    wrong = [n for n in signed if arrays[n].min() < 0] + [n for n in positive if arrays[n] <= 0]
    if wrong:
        raise FileFormatError(
            f"'{path}' has values of the wrong sign in {', '.join(wrong)}, so its map need not be the "
            f"gradient of a convex function; {hint}."
        )
    return arrays


def _shapes(dim: int, *hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "component_means": (3, dim),
        "component_maps": (3, dim, dim),
        "component_std": (),
        "strong_convexity": (),
        "map_scale": (),
        "map_shift": (dim,),
        "target_mean": (dim,),
        "target_cov": (dim, dim),
    }
    for v in _NETWORKS:
        for i, width in zip(_LAYERS, hidden, strict=True):
            shapes[f"{v}.quad.{i}"] = (dim, width)
            shapes[f"{v}.lin.{i}"] = (width, dim)
            shapes[f"{v}.bias.{i}"] = (width,)
        for i in _LAYERS[1:]:
            shapes[f"{v}.convex.{i}"] = (hidden[i], hidden[i - 1])
        shapes[f"{v}.final"] = (hidden[-1],)
    return shapes
