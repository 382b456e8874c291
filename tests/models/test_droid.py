"""DROID-SLAM's network: properties of its parts at a small size, and parity with the official modules (goldens)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatia_jax.errors import InputError
from spatia_jax.models.correlation import correlation_features, correlation_volume
from spatia_jax.models.droid import DroidConfig, upsample
from spatia_jax.weights import droid as weights

SMALL = DroidConfig(widths=(8, 8, 16), feature_dim=16, hidden_dim=16, motion_dim=8, num_levels=3, radius=2)
II, JJ = np.array([0, 1, 1, 2, 0]), np.array([1, 0, 2, 1, 2])
GOLDEN_ERROR = 1e-4  # relative L2; what is measured is below 2e-6
lookup = jax.jit(lambda correlation, coords, radius: correlation.lookup(coords, radius), static_argnums=2)


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)

    def random(leaf):
        return leaf.replace(rng.normal(size=leaf.shape, scale=np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32))

    flat = [(path, random(leaf)) for path, leaf in nnx.to_flat_state(weights.abstract_params(SMALL))]
    return weights.build(SMALL, nnx.from_flat_state(flat))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(1), (3, 9, 14, 16))


@pytest.fixture(scope="module")
def coords():
    """Around the image, on it, and where no image can be."""
    spread = jax.random.uniform(jax.random.key(2), (5, 9, 14, 2), minval=-6.0, maxval=18.0)
    return spread.at[0, 0, 0].set(1e30).at[0, 0, 1].set(-1e30)


def test_encoder_halves_three_times(network):
    images = jax.random.uniform(jax.random.key(0), (2, 24, 40, 3), minval=-1, maxval=1)
    seen = jax.jit(network.encode)(images)
    assert seen.correlated.shape == (2, 3, 5, 16)
    assert seen.hidden.shape == seen.context.shape == (2, 3, 5, 16)
    assert np.abs(seen.hidden).max() <= 1
    assert np.asarray(seen.context).min() == 0
    alone = jax.jit(network.encode)(images[:1])  # no image depends on the others
    np.testing.assert_allclose(seen.correlated[:1], alone.correlated, atol=1e-5)
    with pytest.raises(InputError, match="multiples of 8"):
        network.encode(images[:, :20])


def test_lookup_reads_products_of_pooled_features(features):
    """At whole coordinates the centre of the window is the product itself; its neighbours lie u first, then v."""
    grid = jnp.stack(jnp.meshgrid(jnp.arange(14), jnp.arange(9)), axis=-1)
    centre = jnp.array([4.0, 2.0])
    coords = jnp.broadcast_to(centre, (5, *grid.shape))
    found = lookup(correlation_volume(features, II, JJ, 2), coords, 2).reshape(5, 9, 14, 2, 5, 5)
    source, target = np.asarray(features)[II], np.asarray(features)[JJ]
    for u, v in itertools.product(range(5), range(5)):
        expected = np.einsum("ehwc,ec->ehw", source, target[:, v, 2 + u]) / 16
        np.testing.assert_allclose(found[:, :, :, 0, u, v], expected, atol=1e-5)
    pooled = target[:, 2:4, 4:6].mean((1, 2))  # level 1 at (2, 1)
    np.testing.assert_allclose(found[:, :, :, 1, 2, 2], np.einsum("ehwc,ec->ehw", source, pooled) / 16, atol=1e-5)


def test_lookup_on_the_fly_is_that_of_the_volume(features, coords):
    volume = lookup(correlation_volume(features, II, JJ, 3), coords, 2)
    flying = lookup(correlation_features(features, II, JJ, 3), coords, 2)
    assert volume.shape == (5, 9, 14, 3 * 25)
    np.testing.assert_allclose(flying, volume, atol=1e-5)
    assert not np.any(volume[0, 0, :2])  # far outside is zero
    assert np.abs(volume).max() > 0.1


def test_gradients_of_both_lookups_agree(features, coords):
    def energy(features, coords, make):
        return jnp.square(make(features, jnp.asarray(II), jnp.asarray(JJ), 2).lookup(coords, 1)).sum()

    bounded = jnp.clip(coords, -9.0, 20.0)
    volume, flying = (
        jax.jit(jax.grad(energy, argnums=(0, 1)), static_argnums=2)(features, bounded, make)
        for make in (correlation_volume, correlation_features)
    )
    for one, other in zip(volume, flying, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
        assert np.abs(one).max() > 0.1


def update_arguments(sources):
    keys = jax.random.split(jax.random.key(3), 4)
    widths = (16, 16, SMALL.correlation_dim, 4)
    return [*(jax.random.normal(k, (5, 4, 6, c)) for k, c in zip(keys, widths, strict=True)), jnp.asarray(sources), 3]


def test_update_treats_edges_alike(network):
    """The order of the edges does not matter, and a frame's damping depends on its own edges alone."""
    step = jax.jit(network.update, static_argnums=5)
    arguments = update_arguments(II)
    answer = step(*arguments)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = step(*(a[order] for a in arguments[:5]), 3)
    np.testing.assert_allclose(shuffled.delta, answer.delta[order], atol=1e-5)
    np.testing.assert_allclose(shuffled.eta, answer.eta, atol=1e-6)
    without = step(*arguments[:4], jnp.asarray([0, 1, 1, 3, 0]), 3)  # frame 3 does not exist
    np.testing.assert_allclose(without.eta[:2], answer.eta[:2], atol=1e-6)
    assert np.all(np.isfinite(without.eta[2]))
    assert not np.allclose(without.eta[2], answer.eta[2])
    weight = np.asarray(answer.weight)
    assert 0 < weight.min() < weight.max() < 1
    assert np.asarray(answer.eta).min() > 0


def test_motion_beyond_what_was_trained_is_cut(network):
    step = jax.jit(network.update, static_argnums=5)
    arguments = update_arguments(II)
    far, further = (step(*arguments[:3], jnp.full((5, 4, 6, 4), value), *arguments[4:]) for value in (64.0, 1e4))
    np.testing.assert_array_equal(far.delta, further.delta)


def test_upsampling_is_convex():
    values = jax.random.uniform(jax.random.key(0), (2, 5, 7))
    logits = jax.random.normal(jax.random.key(1), (2, 5, 7, 576))
    fine = np.asarray(upsample(values, logits))
    assert fine.shape == (2, 40, 56)
    for i, (y, x) in itertools.product(range(2), itertools.product(range(1, 4), range(1, 6))):
        near = np.asarray(values)[i, y - 1 : y + 2, x - 1 : x + 2]
        tile = fine[i, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        assert near.min() - 1e-6 <= tile.min() <= tile.max() <= near.max() + 1e-6
    centre = jnp.zeros((2, 5, 7, 9, 64)).at[..., 4, :].set(50.0).reshape(2, 5, 7, 576)
    np.testing.assert_allclose(upsample(values, centre), np.kron(values, np.ones((1, 8, 8))), rtol=1e-6)


@pytest.fixture(scope="module")
def golden(golden_dir):
    arrays = dict(np.load(golden_dir / "droid.npz"))
    params = weights.read_droid(golden_dir / "droid_random.pth", DroidConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_002_565
    return arrays, weights.build(DroidConfig(), params)


def last(array):
    """[1, n, c, h, w] -> [n, h, w, c]."""
    return np.moveaxis(array[0], 1, -1)


def assert_golden(value, expected):
    assert value.shape == expected.shape
    assert np.linalg.norm(value - expected) <= GOLDEN_ERROR * np.linalg.norm(expected)


def test_encoders_golden(golden):
    arrays, network = golden
    seen = jax.jit(network.encode)(last(arrays["images"])[..., ::-1] / 127.5 - 1)  # given as BGR
    assert_golden(seen.correlated, last(arrays["fmaps"]))
    assert_golden(seen.hidden, last(arrays["hidden"]))
    assert_golden(seen.context, last(arrays["context"]))


@pytest.mark.parametrize("make", [correlation_volume, correlation_features])
def test_lookup_golden(golden, make):
    arrays, network = golden
    config = network.config
    correlation = make(jnp.asarray(last(arrays["fmaps"])), arrays["ii"], arrays["jj"], config.num_levels)
    assert_golden(lookup(correlation, arrays["coords"][0], config.radius), last(arrays["corr"]))


def test_update_operator_golden(golden):
    arrays, network = golden
    sources = arrays["ii"]
    hidden, context = last(arrays["hidden"])[sources], last(arrays["context"])[sources]
    step = jax.jit(network.update, static_argnums=5)
    answer = step(hidden, context, last(arrays["corr"]), last(arrays["motion"]), sources, arrays["hidden"].shape[1])
    assert_golden(answer.hidden, last(arrays["update_hidden"]))
    assert_golden(answer.delta, arrays["delta"][0])
    assert_golden(answer.weight, arrays["weight"][0])
    assert_golden(answer.eta, arrays["eta"][0])
    assert_golden(answer.upmask, last(arrays["upmask"]))


def test_convex_upsampling_golden(golden):
    arrays, _ = golden
    assert_golden(upsample(jnp.asarray(arrays["disp"][0]), last(arrays["upmask"])), arrays["disp_up"][0])
