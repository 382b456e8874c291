"""Insertion: what is merged, what is protected, what is evicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.memory import EDIT, EMPTY, MAX_WEIGHT, OBSERVED, empty, from_depth, insert, recolor, remove
from spatia_jax.memory.voxels import number_voxels

SIZE = 0.5
INSERT = jax.jit(insert, static_argnames="voxel_size")


def measurements(n=200, seed=0):
    """Positions, colours, weights, valid; about 4 points a voxel."""
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.uniform(-1, 1, (n, 3)), jnp.float32),
        jnp.asarray(rng.uniform(0, 1, (n, 3)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, n), jnp.float32),
        jnp.ones(n, bool),
    )


def add(point_map, points, provenance=1, voxel_size=SIZE, **extra):
    return INSERT(point_map, *points, provenance=provenance, voxel_size=voxel_size, **extra)


def content(point_map):
    """The points alone, sorted by voxel."""
    valid = np.asarray(point_map.valid)
    order = np.lexsort(np.floor(np.asarray(point_map.positions)[valid] / SIZE).T)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[valid][order], point_map)


def assert_same(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), content(a), content(b))


def test_merges_each_voxel_into_its_weighted_mean():
    positions, colors, weights, _ = map(np.asarray, measurements())
    merged = content(add(empty(300), measurements()))
    voxels = np.floor(positions / SIZE).astype(int)
    expected = sorted(map(tuple, np.unique(voxels, axis=0)), key=lambda v: v[::-1])
    assert len(expected) < len(positions) / 2
    np.testing.assert_array_equal(np.floor(merged.positions / SIZE), expected)
    for i, voxel in enumerate(expected):
        inside = (voxels == voxel).all(axis=1)
        np.testing.assert_allclose(
            merged.positions[i], np.average(positions[inside], axis=0, weights=weights[inside]), atol=1e-6
        )
        np.testing.assert_allclose(
            merged.colors[i], np.average(colors[inside], axis=0, weights=weights[inside]), atol=1e-6
        )
        assert abs(merged.weights[i] - weights[inside].sum()) < 1e-5
        assert merged.counts[i] == inside.sum()


def test_order_of_measurements_does_not_matter():
    points = measurements()
    shuffled = [leaf[np.random.default_rng(1).permutation(200)] for leaf in points]
    assert_same(add(empty(300), points), add(empty(300), shuffled))


def test_inserting_the_map_into_itself_moves_nothing():
    once = add(empty(300), measurements())
    twice = add(once, (once.positions, once.colors, once.weights, once.valid))
    np.testing.assert_allclose(content(twice).positions, content(once).positions, atol=1e-6)
    np.testing.assert_allclose(content(twice).colors, content(once).colors, atol=1e-6)
    np.testing.assert_allclose(content(twice).weights, 2 * content(once).weights, rtol=1e-6)


def test_inserting_nothing_changes_no_bit():
    before = add(empty(300), measurements())
    after = add(before, [*measurements(seed=5)[:3], jnp.zeros(200, bool)])
    jax.tree.map(np.testing.assert_array_equal, content(before), content(after))


def test_observed_points_are_never_changed_by_generated_ones():
    before = add(empty(300), measurements(), OBSERVED)
    after = before
    for clip in range(1, 4):
        after = add(after, measurements(seed=clip), clip)
    observed = content(jax.tree.map(lambda leaf: leaf[after.provenance == OBSERVED], after))
    jax.tree.map(np.testing.assert_array_equal, content(before), observed)


def test_observation_replaces_what_was_generated_or_edited():
    point = (jnp.array([[0.1, 0.1, 0.1]]), jnp.ones((1, 3)), jnp.ones(1), jnp.ones(1, bool))
    better = (jnp.array([[0.2, 0.2, 0.2]]), jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1, bool))
    for order in ((3, EDIT, OBSERVED), (OBSERVED, EDIT, 3), (EDIT, OBSERVED, 3)):
        point_map = empty(4)
        for provenance in order:
            point_map = add(point_map, better if provenance == OBSERVED else point, provenance)
        assert int(point_map.num_points) == 1
        assert_same(point_map, add(empty(4), better, OBSERVED))


def test_generated_points_keep_their_oldest_clip_and_first_keyframe():
    point = (jnp.array([[0.1, 0.1, 0.1]]), jnp.ones((1, 3)), jnp.ones(1), jnp.ones(1, bool))
    point_map = add(empty(4), point, 5, keyframes=jnp.array([40], jnp.int32))
    point_map = add(point_map, point, 7, keyframes=jnp.array([60], jnp.int32))
    assert int(point_map.provenance[0]) == 5
    assert int(point_map.keyframes[0]) == 40
    assert int(point_map.counts[0]) == 2


def test_weights_are_capped():
    point = (jnp.array([[0.1, 0.1, 0.1]]), jnp.ones((1, 3)), jnp.full(1, 80.0), jnp.ones(1, bool))
    assert float(add(add(empty(4), point), point).weights[0]) == MAX_WEIGHT


def test_broken_measurements_are_left_out():
    positions, colors, weights, _ = measurements()
    valid = jnp.arange(200) < 8
    positions = positions.at[0, 1].set(jnp.nan).at[1].set(jnp.inf).at[2, 0].set(1e30)
    colors, weights = colors.at[3].set(jnp.nan), weights.at[4].set(0.0).at[5].set(jnp.nan).at[6].set(-1.0)
    point_map = add(empty(300), (positions, colors, weights, valid))
    assert int(point_map.num_points) == 1
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(point_map))


def test_a_full_map_keeps_observed_then_edited_then_often_seen_then_new():
    def points(x, n):
        grid = jnp.stack([jnp.full(20, x), jnp.arange(20, dtype=jnp.float32), jnp.zeros(20)], axis=-1) + 0.25
        return grid, jnp.ones((20, 3)), jnp.ones(20), jnp.arange(20) < n

    point_map = empty(10)
    for x, n, provenance in ((0.0, 3, OBSERVED), (1.0, 2, EDIT), (2.0, 2, 1), (2.0, 2, 1), (3.0, 3, 2)):
        point_map = add(point_map, points(x, n), provenance)
    assert int(point_map.num_points) == 10
    point_map = add(point_map, points(4.0, 2), 3)  # evicts two of clip 2, which were seen once
    assert sorted(np.asarray(point_map.provenance)) == [0, 0, 0, 1, 1, 2, 3, 3, EDIT, EDIT]
    point_map = add(point_map, points(5.0, 20), OBSERVED)
    assert (np.asarray(point_map.provenance) == OBSERVED).all()
    assert int(point_map.num_points) == point_map.capacity == 10


def test_jit_and_eager_agree():
    points = measurements()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        add(empty(300), points), insert(empty(300), *points, provenance=1, voxel_size=SIZE),
    )  # fmt: skip


def test_voxel_numbers_group_exactly():
    positions = np.random.default_rng(0).uniform(-1e4, 1e4, (500, 3)).astype(np.float32)
    positions[250:] = positions[:250] + 1e-4
    number = np.asarray(number_voxels(jnp.asarray(positions), 1.0))
    _, expected = np.unique(np.floor(positions), axis=0, return_inverse=True)
    same = number[:, None] == number
    np.testing.assert_array_equal(same, expected.reshape(-1)[:, None] == expected.reshape(-1))


def test_remove_and_recolor():
    point_map = add(empty(300), measurements(), OBSERVED)
    mask = point_map.positions[:, 0] > 0
    assert int(remove(point_map, mask).num_points) == int((point_map.valid & ~mask).sum())
    painted = recolor(point_map, mask, jnp.array([1.0, 0.0, 0.0]))
    chosen = np.asarray(mask & point_map.valid)
    assert 0 < chosen.sum() < chosen.size
    np.testing.assert_array_equal(np.asarray(painted.colors)[chosen], np.tile([1.0, 0.0, 0.0], (chosen.sum(), 1)))
    assert (np.asarray(painted.provenance)[chosen] == EDIT).all()
    assert (np.asarray(painted.provenance)[~np.asarray(point_map.valid)] == EMPTY).all()
    np.testing.assert_array_equal(np.asarray(painted.colors)[~chosen], np.asarray(point_map.colors)[~chosen])


def camera(h, w) -> Cameras:
    return Cameras(jnp.eye(3, 4) + jnp.array([0, 0, 0, 0.3]), jnp.array([0.9, 0.9 * w / h, 0.45, 0.55]))


def test_measurements_of_a_slanted_plane_lie_on_it_and_all_count():
    h, w = 20, 30
    rays = camera(h, w).rays(h, w)
    depth = 2.0 / (1.0 + 0.6 * rays[..., 0] - 0.3 * rays[..., 1])  # x, y, z with z + 0.6 x - 0.3 y = 2
    image = jax.random.uniform(jax.random.key(0), (h, w, 3))
    positions, colors, weights, valid = from_depth(image, depth, camera(h, w), jnp.ones((h, w), bool))
    assert bool(valid.all())
    x, y, z = camera(h, w).transform(positions).T
    np.testing.assert_allclose(z + 0.6 * x - 0.3 * y, 2.0, atol=1e-5)
    np.testing.assert_array_equal(colors.reshape(h, w, 3), image)
    assert float(weights[jnp.argmin(depth)]) == float(weights.max())


def test_depth_edges_masks_and_unknown_depth_are_left_out():
    h, w = 12, 16
    depth = jnp.full((h, w), 4.0).at[:, 8:].set(2.0)
    depth = depth.at[0, 0].set(0.0).at[0, 2].set(jnp.nan).at[2, 0].set(-1.0)
    mask = jnp.ones((h, w), bool).at[5, 3].set(False)
    positions, _, weights, valid = from_depth(jnp.zeros((h, w, 3)), depth, camera(h, w), mask)
    expected = np.ones((h, w), bool)
    expected[:, 7:9] = False
    expected[0, 0] = expected[0, 2] = expected[2, 0] = expected[5, 3] = False
    np.testing.assert_array_equal(valid.reshape(h, w), expected)
    assert bool(jnp.isfinite(positions).all())
    assert bool(jnp.isfinite(weights).all())


def test_a_map_needs_room():
    with pytest.raises(InputError, match="capacity 0"):
        empty(0)
