"""The keyframe graph keeps to its capacities, and points follow their keyframes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

from spatia_jax import memory
from spatia_jax.cameras import Cameras
from spatia_jax.mapper import keyframes
from spatia_jax.mapper.surface import point_surfaces
from spatia_jax.mapper.window import among_static

GRID = (6, 8)
add = jax.jit(keyframes.add_keyframe)
LENS = jnp.array([7.0, 7.0, 3.5, 2.5])


def _graph(places, capacity=5):
    """Keyframes that look along z from places on the x axis, before a wall 2 m away."""
    graph = keyframes.empty_graph(capacity, 4, (12, 16), GRID)
    for frame, x in enumerate(places):
        pose = jnp.array([1.0, 0, 0, 0, -x, 0, 0])
        graph = add(
            graph, 10 + frame, jnp.full((12, 16, 3), frame, jnp.uint8), pose, jnp.full(GRID, 0.5), LENS,
            jnp.zeros(GRID), jnp.ones(GRID, bool),
        )  # fmt: skip
    return graph


def _pairs(graph, pairs, weight):
    shape = (len(pairs), 2, *GRID, 2)
    return keyframes.add_pairs(graph, jnp.array(pairs), jnp.zeros(shape), jnp.full(shape, weight))


def test_the_most_redundant_keyframe_leaves_and_pairs_follow_their_frames():
    graph = _graph([0.0, 1.0, 1.1, 2.0, 3.0])
    graph = _pairs(graph, [(0, 1), (2, 3), (3, 4)], 0.5)
    left = keyframes.evict(graph, 1)
    np.testing.assert_array_equal(left.frames, [10, 11, 13, 14, -1])
    np.testing.assert_array_equal(left.pairs, [[0, 1], [-1, -1], [2, 3], [-1, -1]])
    np.testing.assert_array_equal(left.images[:4, 0, 0, 0], [0, 1, 3, 4])
    assert int(left.count) == 4


def test_when_all_slots_are_taken_the_weakest_pair_is_lost():
    graph = _pairs(_graph([0.0, 1, 2, 3, 4]), [(0, 1), (1, 2)], 0.9)
    graph = _pairs(graph, [(2, 3)], 0.1)
    graph = _pairs(graph, [(3, 4), (-1, -1), (0, 4)], 0.5)
    kept = {tuple(pair) for pair in np.asarray(graph.pairs).tolist()}
    assert kept == {(0, 1), (1, 2), (3, 4), (0, 4)}


def test_overlap_is_the_share_that_is_seen():
    share = keyframes.overlap(_graph([0.0, 1.0, 100.0]), jnp.int32(0))
    np.testing.assert_allclose(share, [1.0, 0.5, 0, 0, 0], atol=0.15)


def test_points_keep_their_place_in_the_view_of_their_keyframe():
    before = Cameras(jnp.tile(jnp.eye(3, 4), (2, 1, 1)), jnp.tile(jnp.array([1.0, 1, 0.5, 0.5]), (2, 1)))
    moved = jaxlie.SE3.exp(jnp.array([0.1, -0.2, 0.3, 0.2, 0.1, -0.1]))
    after = Cameras(before.cam_from_world.at[1].set(moved.as_matrix()[:3]), before.intrinsics)
    points = jnp.array([[0.3, 0.1, 2.0], [0.3, 0.1, 2.0], [0.5, 0.0, 1.0]])
    point_map = memory.insert(
        memory.empty(4), points[:1], points[:1], jnp.ones(1), jnp.ones(1, bool), provenance=0, voxel_size=0.01,
        keyframes=jnp.array([7]),
    )  # fmt: skip
    same = keyframes.move_points(point_map, jnp.array([3, 5]), before, after, jnp.ones(2))
    np.testing.assert_array_equal(same.positions, point_map.positions)
    corrected = keyframes.move_points(point_map, jnp.array([3, 7]), before, after, jnp.array([1.0, 2.0]))
    at = int(jnp.argmax(corrected.valid))
    seen_before, _ = before[1].project(point_map.positions[at : at + 1], 10, 10)
    seen_after, depth = after[1].project(corrected.positions[at : at + 1], 10, 10)
    np.testing.assert_allclose(seen_after, seen_before, atol=1e-4)
    np.testing.assert_allclose(depth, 4.0, rtol=1e-5)


def test_a_pair_that_is_matched_again_stays_one_pair():
    graph = _pairs(_graph([0.0, 1, 2]), [(0, 1), (1, 2)], 0.1)
    graph = _pairs(graph, [(1, 2), (0, 2)], 0.9)
    assert sorted(map(tuple, np.asarray(graph.pairs).tolist())) == [(-1, -1), (0, 1), (0, 2), (1, 2)]
    weights = graph.weights[:, 0, 0, 0, 0]
    at = {tuple(pair): float(weight) for pair, weight in zip(graph.pairs.tolist(), weights, strict=True)}
    assert at[1, 2] == at[0, 2] == np.float32(0.9)


def test_the_surface_of_a_wall_faces_the_camera():
    """Cells of 2 m / 7 px before the camera; of points of frames that are gone nothing is known."""
    positions = jnp.array([[0.1, 0.0, 2.0], [1.3, 0.2, 2.0], [0.0, 0.0, 2.0]])
    point_map = memory.insert(
        memory.empty(4), positions, positions, jnp.ones(3), jnp.ones(3, bool), provenance=0, voxel_size=0.01,
        keyframes=jnp.array([10, 11, 99]),
    )  # fmt: skip
    normals, radii = point_surfaces(_graph([0.0, 1.0]), point_map, 2)
    known = np.isin(point_map.keyframes, [10, 11])
    np.testing.assert_allclose(normals[known], [[0, 0, -1]] * 2, atol=1e-5)
    np.testing.assert_allclose(radii[known], 2 / 7 / np.pi**0.5 / 2, rtol=1e-4)
    assert not normals[~known].any()
    assert not radii[~known].any()


def test_what_moves_is_not_matched():
    static = jnp.ones((2, *GRID), bool).at[1, :, 4:].set(False)
    columns, rows = np.meshgrid(np.arange(8.0), np.arange(6.0))
    pixels = jnp.broadcast_to(jnp.asarray(np.stack([columns, rows], -1)), (1, 2, *GRID, 2))
    weights = among_static(jnp.ones((1, 2, *GRID, 2)), pixels, jnp.array([[0, 1]]), static)
    np.testing.assert_array_equal(weights[0, :, 0, :, 0], [[1, 1, 1, 1, 0, 0, 0, 0]] * 2)
