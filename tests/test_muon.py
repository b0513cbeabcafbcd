"""Muon over matrices of one shape at once: the same as one by one."""

import jax
import numpy as np
import optax.contrib

from brenier.methods._muon import muon

RNG = np.random.default_rng(0)


def test_the_same_as_matrix_by_matrix():
    shapes = ((3, 4), (4,), (4, 3), (3, 4), (), (4,), (2, 2, 2))
    params, first, second = (
        {
            "odd": [RNG.normal(size=s) for s in shapes[::2]],
            "even": [RNG.normal(size=s) for s in shapes[1::2]],
        }
        for _ in range(3)
    )

    def two_updates(optimizer, params, first, second):
        one, state = optimizer.update(first, optimizer.init(params), params)
        return one, optimizer.update(second, state, params)[0]

    found, expected = (
        jax.jit(two_updates, static_argnums=0)(optimizer, params, first, second)
        for optimizer in (muon(0.1), optax.contrib.muon(0.1))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)
