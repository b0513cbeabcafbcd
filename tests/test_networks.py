"""How networks start: weights of the scale their layers ask for, the same for the same key."""

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
