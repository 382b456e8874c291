"""Hole filling: known pixels stay, holes continue what is around them."""

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.pyramid import fill_holes


@pytest.fixture
def image():
    return jnp.asarray(np.random.default_rng(0).random((2, 13, 22, 3)), jnp.float32)


def test_known_pixels_stay(image):
    known = jnp.asarray(np.random.default_rng(1).random(image.shape[:-1]) < 0.4, jnp.float32)
    filled = fill_holes(image * known[..., None], known)
    np.testing.assert_array_equal(filled[known > 0], image[known > 0])
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_one_colour_fills_everything(image):
    known = jnp.zeros(image.shape[:-1]).at[:, 5, 7].set(1.0)
    color = jnp.asarray([0.2, 0.5, 0.9])
    np.testing.assert_allclose(
        fill_holes(known[..., None] * color, known), jnp.broadcast_to(color, image.shape), atol=1e-6
    )


def test_nothing_known_gives_the_empty_value(image):
    nothing = jnp.zeros(image.shape[:-1])
    np.testing.assert_allclose(fill_holes(0 * image, nothing, empty=0.25), 0.25)


def test_holes_continue_the_nearer_side():
    known = jnp.ones((16, 32)).at[:, 8:24].set(0.0)
    color = jnp.zeros((16, 32, 1)).at[:, 24:].set(1.0) * known[..., None]
    row = np.asarray(fill_holes(color, known))[8, :, 0]
    assert row[9] < 0.2
    assert row[22] > 0.8
    assert (np.diff(row) > -1e-6).all()
