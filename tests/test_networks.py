"""How networks start: weights of the scale their layers ask for, the same for the same key."""

import equinox as eqx
import jax
import numpy as np
import pytest

from brenier import networks
from brenier.networks import _normals


@pytest.mark.parametrize("together", [0, 2**18])
def test_each_draw_is_that_of_its_own_key(together, monkeypatch):
    monkeypatch.setattr(_normals, "_TOGETHER", together)
    keys, shapes = jax.random.split(jax.random.key(0), 3), [(40, 50), (7,), (2, 3, 4)]
    found = _normals.normals(keys, shapes)
    for key, shape, drawn in zip(keys, shapes, found, strict=True):
        np.testing.assert_allclose(drawn, jax.random.normal(key, shape), rtol=1e-12)


def test_weights_have_the_scale_of_their_layer():
    key = jax.random.key(0)
    plain = networks.MLP(50, (60, 70), key=key)
    assert [w.shape for w in plain.weights] == [(51, 60), (60, 70)]
    film = networks.FiLM(50, (60,), features=40, frequencies=20, key=key)
    assert film.lift.shape == (50, 40)
    assert film.time_scale.shape == film.time_shift.shape == (40, 40)
    maps = networks.ResidualMap(50, (60, 70), key=key)
    layers = networks.ResNet(50, 60, 2, key=key)
    weights = (*plain.weights, *film.weights, film.lift, film.time_scale, film.time_shift)
    for weight in (*weights, *maps.weights, *layers.weights, layers.lift):
        assert np.std(weight) == pytest.approx(len(weight) ** -0.5, rel=0.1)
    dense = networks.DenseQuadratic(50, (60, 70), init_scale=0.1, key=key)
    assert dense.hidden[0].shape == (60, 70)
    for weight in (*dense.squared, *dense.linear, *dense.hidden):
        assert np.std(weight) == pytest.approx(0.1, rel=0.1)
    # No two of them come from one draw.
    firsts = [weight.ravel()[0].item() for weight in jax.tree.leaves(dense)]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("kind", ["film", "dense"])
def test_a_radial_network_reaches_directions_beyond_its_features(kind):
    dim, t, key = 30, jax.numpy.asarray(0.3), jax.random.key(0)
    x = jax.random.normal(jax.random.key(1), (dim,))

    def built(radial):
        if kind == "film":
            return networks.FiLM(dim, (6,), features=4, radial=radial, key=key)
        return networks.DenseQuadratic(dim, (2, 3), radial=radial, key=key)

    def seen(u):
        """The weights of the coordinates, and of the radius last where there is one."""
        if kind == "film":
            return (u.lift,)
        return (*(w[1:] for w in u.squared), *(w[1:] for w in u.linear))

    plain, radial = built(False), built(True)
    blind = np.linalg.svd(np.concatenate(seen(plain), axis=1).T)[2][-1]
    np.testing.assert_allclose(plain(t, x + blind), plain(t, x), rtol=1e-12)

    alone = jax.tree.map(lambda w: w.at[-dim - 1 : -1].set(0.0) if len(w) > dim else w, radial)
    slope = jax.grad(alone, argnums=1)(t, x)
    assert np.linalg.norm(slope) > 1e-3
    np.testing.assert_allclose(slope, x * (slope @ x) / (x @ x), atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 3, 4), (16, 16), (17, 8)])
def test_dense_quadratic_is_the_formula_of_its_docstring(widths):
    t, z = 0.3, np.array([0.3, 0.7, -1.2])
    u = networks.DenseQuadratic(
        2, widths, activation="softplus", direct=True, key=jax.random.key(0)
    )
    start, end = jax.random.normal(jax.random.key(1), (2, widths[0]))
    u = eqx.tree_at(lambda u: u.direct, u, (start, end))
    skips = [
        (z @ a) ** 2 + z @ b + bias
        for a, b, bias in zip(u.squared, u.linear, u.biases, strict=True)
    ]
    h = skips[0]
    for weight, skip in zip(u.hidden, skips[1:], strict=True):
        h = np.log1p(np.exp(h @ weight + skip))
    expected = h @ u.head + skips[0] @ ((1 - t) * start + t * end)
    np.testing.assert_allclose(u(jax.numpy.asarray(t), jax.numpy.asarray(z[1:])), expected)
