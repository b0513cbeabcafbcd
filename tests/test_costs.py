import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier.costs import Quadratic

VECTORS = [jnp.asarray(v) for v in ([0.0, 0.0], [1e-8, 0.0], [3.0, -4.0], [-1e4, 2e4])]


@pytest.mark.parametrize("v", VECTORS, ids=str)
@pytest.mark.parametrize("cost", [Quadratic()], ids=lambda c: type(c).__name__)
def test_legendre_pair(cost, v):
    p = cost.grad_lagrangian(v)
    np.testing.assert_allclose(cost.grad_hamiltonian(p), v, rtol=1e-12)
    np.testing.assert_allclose(cost.lagrangian(v) + cost.hamiltonian(p), p @ v, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(cost.lagrangian)(v), p, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(cost.hamiltonian)(p), v, rtol=1e-12)


def test_quadratic_has_the_half():
    assert Quadratic().static(jnp.zeros(2), jnp.asarray([3.0, 4.0])) == 12.5


def test_galilean_means_what_it_says():
    v, q = jnp.asarray([1.0, 2.0]), jnp.asarray([-3.0, 0.5])
    L = Quadratic().lagrangian
    assert Quadratic().galilean
    np.testing.assert_allclose(L(v + q), L(v) + q @ v + L(q))
