"""The compiled programs of a fit, shared by all fits of a kind."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from brenier.coordinates import Frame
from brenier.methods import Method
from brenier.problem import TransportProblem
from brenier.transport import Transport
from brenier.typing import Key

_MOST_SHARED = 32  # kinds of fits whose compiled programs are kept for later ones


class Programs:
    """The compiled programs of a method on one kind of problem, or on a stack of such problems."""

    def __init__(
        self,
        method: Method[Any],
        problem: TransportProblem,
        stacked: bool = False,
        mesh: Mesh | None = None,
    ):
        bare = problem.without_samples()
        extract, advance = partial(_extract, method, bare), partial(_advance, method, bare)
        if stacked:
            extract, advance = jax.vmap(extract), jax.vmap(advance)
        self.extract = jax.jit(extract)
        self._mesh = mesh
        # A state that came out in parts would not fit the program of the next chunk.
        placed: dict[str, Any] = {}
        if mesh is not None:
            placed["out_shardings"] = NamedSharding(mesh, PartitionSpec())
        self._advance = jax.jit(advance, donate_argnums=0, **placed)
        self._compiled: dict[Any, Any] = {}
        self._compiling = threading.Lock()

    @classmethod
    def of(
        cls,
        method: Method[Any],
        problem: TransportProblem,
        stacked: bool = False,
        mesh: Mesh | None = None,
    ) -> Programs:
        """Those of an earlier fit of the same kind, where there was one.

        A state cost, a drift, and a method or a cost that holds arrays, have programs of their own.
        """
        if problem.state_cost is not None or problem.drift is not None:
            return cls(method, problem, stacked, mesh)
        facts = (problem.dim, problem.dtype, problem.noise, problem.cost, len(problem.classes))
        kind = (method, *facts, stacked, mesh)
        try:
            hash(kind)
        except TypeError:  # an empty dict would not have asked
            return cls(method, problem, stacked, mesh)
        programs = _shared.pop(kind, None) or cls(method, problem, stacked, mesh)
        _shared[kind] = programs
        if len(_shared) > _MOST_SHARED:
            del _shared[next(iter(_shared))]  # the one that was not used for longest
        return programs

    def advance(self, arguments: tuple[Any, ...]) -> Any:
        """The program of a chunk of steps for arguments of these shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, shapes, jax.config.read("jax_enable_x64"))
        with self._compiling:
            if key not in self._compiled:
                with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
                    self._compiled[key] = self._advance.lower(*arguments).compile()
            return self._compiled[key]

    def temporary_bytes(self) -> int:
        """What the largest program of a chunk needs on a device, besides its arguments and results."""
        found = (program.memory_analysis() for program in self._compiled.values())
        return max((facts.temp_size_in_bytes for facts in found if facts), default=0)


_shared: dict[Any, Programs] = {}


def _extract(method: Method[Any], problem: TransportProblem, state: Any) -> Transport:
    return method.extract(problem, state, Frame.identity(problem.dim))


def _advance(
    method: Method[Any],
    problem: TransportProblem,
    state: Any,
    xs: jax.Array,
    ys: jax.Array,
    stream: Key,
    first: Any,
    n: Any,
    start: Any,
    slope: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`n` steps from the `first` on, and the means of their metrics."""
    # Jitted, so that it is traced once for both of its uses.
    step = jax.jit(partial(method.step, problem), inline=True)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, sums = carry
        position = start + slope * i.astype(start.dtype)
        state, metrics = step(
            state, (xs[i], ys[i]), jax.random.fold_in(stream, first + i), position
        )
        return state, jax.tree.map(jnp.add, sums, metrics)

    found = jax.eval_shape(step, state, (xs[0], ys[0]), stream, start)[1]
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), found)
    state, sums = jax.lax.fori_loop(0, n, body, (state, zeros))
    return state, jax.tree.map(lambda s: s / n, sums)
