"""Matching without weights: a textured plane whose motion is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.mapper.matching import PatchMatcher

HEIGHT, WIDTH, GRID = 96, 128, (12, 16)
match = jax.jit(lambda matcher, images, pairs: matcher(images, pairs, GRID), static_argnums=0)


def _texture(x, y):
    """Smooth and nowhere like itself: many waves in random directions."""
    random = np.random.default_rng(3)
    size, turn, phase = random.uniform(0.05, 0.6, 40), *random.uniform(0, 2 * np.pi, (2, 40))
    waves = np.sin(np.multiply.outer(x, size * np.cos(turn)) + np.multiply.outer(y, size * np.sin(turn)) + phase)
    return np.repeat(0.5 + 0.04 * waves.sum(-1, keepdims=True), 3, axis=-1)


def _images(shift):
    y, x = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    return jnp.asarray(np.stack([_texture(x, y), _texture(x - shift[0], y - shift[1])]), jnp.float32)


@pytest.mark.parametrize(("shift", "share"), [((0.0, 0.0), 0.9), ((2.3, -1.6), 0.9), ((-9.4, 7.8), 0.3)])
def test_a_shift_is_found_to_a_fraction_of_a_pixel(shift, share):
    pixels, weights = match(PatchMatcher(), _images(shift), jnp.array([[0, 1]]))
    columns, rows = np.meshgrid(np.arange(GRID[1]), np.arange(GRID[0]))
    there, back = (np.asarray(p - np.stack([columns, rows], -1)) * 8 for p in pixels[0])
    sure = np.asarray(weights[0]).min(-1) > 0.3
    assert sure[:, 3:-3, 3:-3].mean() > share
    for error in (np.abs(there - shift)[sure[0]], np.abs(back + shift)[sure[1]]):
        assert np.median(error) < 0.05
        assert np.quantile(error, 0.95) < 0.3


def test_pictures_of_different_things_do_not_match():
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.random((2, HEIGHT, WIDTH, 3)), jnp.float32)
    assert match(PatchMatcher(), images, jnp.array([[0, 1]]))[1].mean() < 0.1


def test_a_flat_picture_is_finite_and_never_sure():
    pixels, weights = match(PatchMatcher(), jnp.full((2, HEIGHT, WIDTH, 3), 0.4), jnp.array([[0, 1]]))
    assert np.isfinite(pixels).all()
    assert weights.max() < 0.6


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="whole factor"):
        PatchMatcher()(jnp.zeros((2, 96, 128, 3)), jnp.array([[0, 1]]), (13, 16))
