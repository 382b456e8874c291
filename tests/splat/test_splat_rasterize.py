"""The two rasterisers against a brute force over all pairs of pixel and point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.splat import SplatConfig, rasterize
from spatia_jax.splat.projection import pixel_centers

RUN = jax.jit(rasterize, static_argnames=("height", "width", "config"))


def brute_force(ndc, valid, height, width, config):
    """[h, w, k] indices by the words of the definition."""
    x, y = pixel_centers(height, width)
    out = np.full((height, width, config.points_per_pixel), -1)
    radius2 = np.float32(config.radius) ** 2
    with np.errstate(invalid="ignore"):
        for row in range(height):
            for column in range(width):
                distance2 = (ndc[:, 0] - x[column]) ** 2 + (ndc[:, 1] - y[row]) ** 2
                hits = np.flatnonzero(valid & (ndc[:, 2] >= 0) & (distance2 < radius2))
                hits = hits[np.lexsort((hits, ndc[hits, 2]))][: config.points_per_pixel]
                out[row, column, : len(hits)] = hits
    return out


def scene(name: str, seed: int = 0):
    """ndc [n, 3] and valid [n]."""
    rng = np.random.default_rng(seed)
    ndc = rng.uniform([-2.2, -1.2, 0.5], [2.2, 1.2, 4.0], (600, 3)).astype(np.float32)
    valid = np.ones(len(ndc), bool)
    if name == "equal depths":
        ndc[:, 2] = np.round(ndc[:, 2])
    elif name == "duplicates":
        ndc[300:] = ndc[:300]
    elif name == "behind and in the plane":
        ndc[::3, 2] *= -1
        ndc[1::7, 2] = 0.0
        ndc[2::7, 2] = -0.0
    elif name == "not finite":
        ndc[::5, 0], ndc[1::5, 1], ndc[2::5, 2], ndc[3::5, 0] = np.nan, np.inf, np.nan, -np.inf
    elif name == "far outside":
        ndc[::2, :2] *= 1e20
    elif name == "masked":
        valid = rng.random(len(ndc)) < 0.5
    elif name == "one stack":
        ndc[:, :2] = rng.normal(0, 0.02, (len(ndc), 2))
    elif name == "single":
        ndc, valid = np.array([[0.1, -0.2, 1.0]], np.float32), valid[:1]
    elif name == "empty":
        ndc, valid = ndc[:0], valid[:0]
    else:
        assert name == "random"
    return ndc, valid


SCENES = [
    "random", "equal depths", "duplicates", "behind and in the plane", "not finite", "far outside", "masked",
    "one stack", "single", "empty",
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["auto", "peel", "stencil"])
@pytest.mark.parametrize("name", SCENES)
def test_selects_what_brute_force_selects(name, algorithm):
    ndc, valid = scene(name)
    config = SplatConfig(radius=0.15, points_per_pixel=4, algorithm=algorithm)
    indices = RUN(jnp.asarray(ndc), jnp.asarray(valid), height=19, width=34, config=config).indices
    np.testing.assert_array_equal(indices, brute_force(ndc, valid, 19, 34, config))


@pytest.mark.parametrize("algorithm", ["auto", "peel", "stencil"])
@pytest.mark.parametrize(
    ("height", "width", "radius", "k"), [(1, 1, 0.9, 3), (1, 9, 0.3, 2), (33, 8, 0.05, 5), (20, 20, 0.01, 1)]
)
def test_sizes_of_image_and_disc(height, width, radius, k, algorithm):
    ndc, valid = scene("random", seed=height)
    config = SplatConfig(radius=radius, points_per_pixel=k, algorithm=algorithm)
    indices = RUN(jnp.asarray(ndc), jnp.asarray(valid), height=height, width=width, config=config).indices
    np.testing.assert_array_equal(indices, brute_force(ndc, valid, height, width, config))


def test_points_beyond_the_border_reach_in():
    """A disc whose centre is outside the image still covers the pixels that it touches, on all four sides."""
    x, y = pixel_centers(8, 12)
    step = 2.0 / 8
    beyond = np.array(
        [[x[0] + step, y[4], 1], [x[-1] - step, y[4], 1], [x[5], y[0] + step, 1], [x[5], y[-1] - step, 1]]
    )
    for algorithm in ("peel", "stencil"):
        config = SplatConfig(radius=1.2 * step, points_per_pixel=1, algorithm=algorithm)
        indices = rasterize(jnp.asarray(beyond, jnp.float32), jnp.ones(4, bool), 8, 12, config).indices[..., 0]
        assert (int(indices[4, 0]), int(indices[4, 11]), int(indices[0, 5]), int(indices[7, 5])) == (0, 1, 2, 3)
        assert int((indices >= 0).sum()) == 4


def test_depth_and_distance_belong_to_the_points():
    ndc, valid = scene("random")
    config = SplatConfig(radius=0.15)
    fragments = rasterize(jnp.asarray(ndc), jnp.asarray(valid), 19, 34, config)
    hit = np.asarray(fragments.indices) >= 0
    chosen = ndc[np.asarray(fragments.indices)[hit]]
    np.testing.assert_array_equal(np.asarray(fragments.depth)[hit], chosen[:, 2])
    assert (np.asarray(fragments.distance2)[hit] < config.radius**2).all()
    assert (np.asarray(fragments.depth)[~hit] == -1).all()
    assert (np.asarray(fragments.distance2)[~hit] == -1).all()
    assert (np.diff(np.where(hit, fragments.depth, np.inf), axis=-1)[hit[..., 1:]] >= 0).all()


def test_all_algorithms_agree_on_a_larger_scene():
    rng = np.random.default_rng(7)
    ndc = rng.uniform([-2, -1.1, -0.5], [2, 1.1, 5], (20000, 3)).astype(np.float32)
    ndc[:, 2] = np.round(ndc[:, 2] * 9) / 9
    valid = jnp.asarray(rng.random(len(ndc)) < 0.8)
    results = [
        RUN(jnp.asarray(ndc), valid, height=70, width=120, config=SplatConfig(radius=0.04, algorithm=name)).indices
        for name in ("peel", "stencil", "auto")
    ]
    assert (np.asarray(results[0]) >= 0).mean() > 0.9
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
