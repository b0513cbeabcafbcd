"""Single cells in `anndata.AnnData`: points out of `obsm`, and what a map made of them back into it.

The functions take the object as it is; only files need the `anndata` extra. On disk the same is
said by the path: `brenier.points.read_points("cells.h5ad:X_pca:day=2")`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from brenier.errors import InputError
from brenier.samplers import check_points

if TYPE_CHECKING:  # a solution is made of what reads points
    from brenier.solution import Solution

ENTRY = "X_brenier"
"""The entry of `obsm` that the command line writes where it is given no name."""

_SHOWN = 12  # values that a message lists


def get_points(
    adata: Any, entry: str | None = None, *, where: tuple[str, Any] | None = None
) -> np.ndarray:
    """The points of cells: an entry of `obsm`, or `X`.

    Args:
        adata: an `anndata.AnnData`.
        entry: key of `obsm`; the matrix `X` where left out. A sparse matrix is made dense.
        where: `(column, value)`: of the cells with this value in this column of `obs` only, such as
            those of one time point.

    Returns:
        Finite numbers, float32 or float64, shape (n, d).

    Raises:
        InputError: there is no such entry, column or value; NaN, infinite values, or a table that
            is not numeric.

    Example:
        >>> from types import SimpleNamespace
        >>> adata = SimpleNamespace(
        ...     X=None, obsm={"X_pca": np.eye(3)}, obs={"day": np.array([0, 0, 2])}
        ... )
        >>> get_points(adata, "X_pca", where=("day", 0)).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    array = entry_of(adata, entry, "the AnnData")
    if where is not None:
        array = array[rows_where(adata, where, "the AnnData")]
    dense = array.toarray() if hasattr(array, "toarray") else array
    return check_points(dense, "X" if entry is None else f"obsm['{entry}']")


def set_points(
    adata: Any,
    entry: str,
    points: np.ndarray,
    solution: Solution | None = None,
    *,
    where: tuple[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Put points into `obsm[entry]`, and where they came from into `uns["brenier"][entry]`.

    Args:
        adata: an `anndata.AnnData`, changed in place.
        entry: key of `obsm`; what it holds is replaced.
        points: shape (m, d), a row for each of the cells.
        solution: of the fit behind them.
        where: as in `get_points`: the cells that the points belong to. The others get NaN.
        **facts: further entries of `uns`, such as `time=0.5`.

    Raises:
        InputError: another number of points than of cells; there is no such column or value.

    Example:
        >>> from types import SimpleNamespace
        >>> adata = SimpleNamespace(n_obs=2, obsm={}, uns={}, obs={"day": np.array([0, 2])})
        >>> set_points(adata, "X_half", np.ones((1, 2)), where=("day", 0), time=0.5)
        >>> adata.obsm["X_half"].tolist(), adata.uns["brenier"]["X_half"]
        ([[1.0, 1.0], [nan, nan]], {'time': 0.5})
    """
    chosen = None if where is None else rows_where(adata, where, "the AnnData")
    adata.obsm[entry] = place(points, adata.n_obs, chosen, check_entry(entry))
    adata.uns.setdefault("brenier", {})[entry] = provenance(solution, **facts)


def provenance(solution: Solution | None, **facts: Any) -> dict[str, Any]:
    """How a map was fitted and how good it is, in values that an `.h5ad` can hold.

    Returns:
        `facts` and, of the solution, `method`, `settings` (all options, as JSON), `seed` (the data
        of the random key), `steps`, `status`, `message`, `versions` and `scores`.
    """
    if solution is not None:
        info = solution.info
        method = info.get("method", {})
        facts |= {
            "method": method.get("name"),
            "settings": json.dumps(method, default=str),
            "seed": np.asarray(info.get("key", [])),
            "steps": info.get("steps"),
            "status": solution.status,
            "message": solution.message,
            "versions": dict(info.get("versions", {})),
            "scores": {name: float(value) for name, value in solution.scores.items()},
        }
    return {name: value for name, value in facts.items() if value is not None}


def entry_of(adata: Any, entry: str | None, name: str) -> Any:
    """`obsm[entry]`, or the matrix `X`, of the object with this name in messages."""
    if entry in adata.obsm:
        return adata.obsm[entry]
    found = ", ".join(adata.obsm) or "none"
    if entry not in (None, "X"):
        raise InputError(f"Expected an entry '{entry}' of obsm in {name}, found {found}.")
    try:
        matrix = adata.X
    except KeyError:  # a file without one, while it stays on disk
        matrix = None
    if matrix is None:
        raise InputError(
            f"Expected a matrix X in {name}, found none; choose an entry of obsm (found {found})."
        )
    return matrix


def rows_where(adata: Any, where: tuple[str, Any], name: str) -> np.ndarray:
    """Which cells have a value in a column of `obs`: booleans of shape (n,), not all false."""
    column, value = where
    if column not in adata.obs:
        found = ", ".join(map(str, adata.obs)) or "none"
        raise InputError(f"Expected a column '{column}' of obs in {name}, found {found}.")
    values = np.asarray(adata.obs[column])
    chosen = values.astype(str) == str(value)
    if values.dtype.kind in "fiu":  # 2, "2" and "2.0" are one number
        with contextlib.suppress(ValueError, TypeError):
            chosen = values == float(value)
    if not chosen.any():
        found = sorted(set(values.astype(str)))
        more = ", ..." if len(found) > _SHOWN else ""
        raise InputError(
            f"Expected cells with {column}={value} in {name}, found "
            f"{', '.join(found[:_SHOWN]) or 'no cells'}{more} in that column."
        )
    return chosen


def check_entry(entry: str) -> str:
    """The name of an entry, or the reason why an `.h5ad` cannot hold one of that name."""
    if not entry or "/" in entry:
        raise InputError(f"Expected a name without '/' for an entry of obsm, found {entry!r}.")
    return entry


def place(points: np.ndarray, n: int, chosen: np.ndarray | None, name: str) -> np.ndarray:
    """Points (m, d) in the rows of the chosen cells, NaN in the other rows, shape (n, d)."""
    expected = n if chosen is None else int(chosen.sum())
    if points.ndim != 2 or len(points) != expected:
        raise InputError(
            f"Expected points of shape ({expected}, d) for '{name}', one for each cell, found shape "
            f"{points.shape}; say with where= which cells they belong to."
        )
    if chosen is None:
        return points
    placed = np.full((n, points.shape[1]), np.nan, points.dtype)
    placed[chosen] = points
    return placed
