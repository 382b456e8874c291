"""Tracking, motion and carving on a synthetic room (floor, back wall, box) that is known in closed form."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper import TrackingConfig, seen_through, tracking
from spatia_jax.mapper.motion import MotionConfig, moving_pixels

K, H, W = 3, 96, 128
CONFIG = TrackingConfig()


def cameras(turn_degrees=0.0):
    """An anchor and K keyframes that move aside; the keyframes turned away from where they really are."""
    steps = 0.08 * jnp.arange(K + 1)
    poses = jnp.broadcast_to(jnp.eye(3, 4), (K + 1, 3, 4)).at[:, 0, 3].set(-steps)
    views = Cameras(poses, jnp.broadcast_to(jnp.array([0.8, 0.8 * W / H, 0.5, 0.5]), (K + 1, 4)))
    away = jnp.radians(turn_degrees) * jnp.array([0.0, 0.0, 0.0, 0.5, -1.0, 0.3]) + 0.02 * (turn_degrees > 0)
    wrong = jnp.where(jnp.arange(K + 1)[:, None] > 0, away, 0.0)
    return Cameras.from_se3(jaxlie.SE3.exp(wrong) @ views.as_se3(), views.intrinsics)


@jax.jit
def photograph(views):
    """(depth [v, h, w], frames [v, h, w, 3]) of a floor 1 m below, a wall 4 m ahead and a box 2.5 m ahead."""
    rays = jnp.einsum("vji,vhwj->vhwi", views.rotation, views.rays(H, W))
    centers = views.centers[:, None, None]
    floor = jnp.where(rays[..., 1] > 1e-3, (1 - centers[..., 1]) / jnp.maximum(rays[..., 1], 1e-3), jnp.inf)
    wall = (4 - centers[..., 2]) / rays[..., 2]
    front = (2.5 - centers[..., 2]) / rays[..., 2]
    on_front = centers + front[..., None] * rays
    box = jnp.where((jnp.abs(on_front[..., 0]) < 0.5) & (jnp.abs(on_front[..., 1]) < 0.5), front, jnp.inf)
    along = jnp.minimum(jnp.minimum(floor, wall), box)
    points = centers + along[..., None] * rays
    waves = jnp.asarray(np.random.default_rng(5).normal(0, 10, (3, 60)), jnp.float32)  # a place is nowhere like another
    color = 0.5 + 0.12 * jnp.sin(points @ waves + jnp.arange(60)).reshape(*points.shape[:-1], 3, 20).sum(-1)
    in_camera = jnp.einsum("vij,vhwj->vhwi", views.rotation, points - centers)
    return in_camera[..., 2], color


@functools.cache
def tracked(degrees=2.0):
    right, start = cameras(), cameras(degrees)
    depth, frames = photograph(right)
    covered = jnp.ones((K, H, W)).at[:, :, 100:].set(0.0)
    thought = start
    for _ in range(CONFIG.rounds):
        map_depth, map_color = photograph(thought)
        answer = jax.jit(tracking.track, static_argnums=0)(
            CONFIG,
            tracking.Views(frames[:1], depth[:1], right[:1]),
            tracking.Views(frames[1:], 1.05 * depth[1:], start[1:]),
            tracking.Views(map_color[1:] * covered[..., None], map_depth[1:] * covered, thought[1:], covered),
        )
        thought = Cameras.concatenate([right[:1], answer.cameras])
    return right[1:], start[1:], answer


def errors(one, other):
    turn = (one.as_se3().rotation() @ other.as_se3().rotation().inverse()).log()
    return np.linalg.norm(one.centers - other.centers, axis=-1), np.degrees(np.linalg.norm(turn, axis=-1))


def test_tracking_takes_wrong_poses_back():
    right, start, answer = tracked()
    metres, degrees = errors(answer.cameras, right)
    metres_before, degrees_before = errors(start, right)
    assert metres.max() < 0.4 * metres_before.min(), metres  # the prior holds some of it
    assert degrees.max() < 0.1 * degrees_before.min(), degrees
    assert np.all(np.diff(answer.costs) <= 0)
    assert np.all(answer.depth_information >= answer.prior_information)
    assert np.median(answer.depth_information / answer.prior_information) > 1.02  # matches say something of depth


def test_right_poses_stay():
    right, _, _ = tracked()
    _, _, answer = tracked(0.0)
    metres, degrees = errors(answer.cameras, right)
    assert metres.max() < 0.003
    assert degrees.max() < 0.05


def test_nothing_to_see_leaves_the_poses():
    right = cameras()
    blank = tracking.Views(jnp.full((K, H, W, 3), 0.5), jnp.zeros((K, H, W)), right[1:], jnp.zeros((K, H, W)))
    anchor = tracking.Views(jnp.full((1, H, W, 3), 0.5), jnp.zeros((1, H, W)), right[:1])
    frames = tracking.Views(jnp.full((K, H, W, 3), 0.5), jnp.ones((K, H, W)), right[1:])
    answer = jax.jit(tracking.track, static_argnums=0)(CONFIG, anchor, frames, blank)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(answer))
    metres, degrees = errors(answer.cameras, right[1:])
    assert metres.max() < 0.02
    assert degrees.max() < 0.5


def test_matches_lead_to_where_things_are_not_to_where_they_show():
    """The map drawn half a pixel aside, and said to be so, is as good as one that is not."""
    right, _, _ = tracked()
    views = cameras()
    depth, frames = photograph(views)
    aside = dataclasses.replace(views, intrinsics=views.intrinsics + jnp.array([0.0, 0.0, 0.5 / W, 0.0]))
    map_depth, map_color = photograph(aside)
    offsets = jnp.broadcast_to(jnp.array([-0.5, 0.0]), (K, H, W, 2))
    answer = jax.jit(tracking.track, static_argnums=0)(
        CONFIG,
        tracking.Views(frames[:1], depth[:1], views[:1]),
        tracking.Views(frames[1:], depth[1:], views[1:]),
        tracking.Views(map_color[1:], map_depth[1:], views[1:], jnp.ones((K, H, W)), jnp.ones((K, H, W)), offsets),
    )
    metres, degrees = errors(answer.cameras, right)
    assert metres.max() < 0.003, metres
    assert degrees.max() < 0.05, degrees


def test_displacements_of_places_that_lie_where_they_show_are_zero():
    views = cameras()
    depth, _ = photograph(views)
    offsets, found = tracking.displacements(views.unproject(depth), views)
    np.testing.assert_allclose(offsets, 0, atol=1e-3)
    np.testing.assert_allclose(found, depth, rtol=1e-5)


def test_all_frames_follow_their_keyframes():
    path = Cameras(
        jnp.broadcast_to(jnp.eye(3, 4), (9, 3, 4)).at[:, 0, 3].set(jnp.arange(9.0)),
        jnp.broadcast_to(jnp.array([0.8, 1.0, 0.5, 0.5]), (9, 4)),
    )
    keyframes = (2, 5, 8)
    shift = jaxlie.SE3.exp(jnp.array([[0.3, 0, 0, 0, 0, 0.0], [0.6, 0, 0, 0, 0, 0], [0.6, 0, 0, 0, 0, 0]]))
    found = Cameras.from_se3(shift @ path[jnp.array(keyframes)].as_se3(), path.intrinsics[jnp.array(keyframes)])
    moved = tracking.follow(path, keyframes, found)
    expected = np.arange(9.0) + np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6])
    np.testing.assert_allclose(moved.cam_from_world[:, 0, 3], expected, atol=1e-5)


def test_the_next_clip_starts_where_the_last_one_ended():
    told, found = cameras(), cameras(3.0)
    correction = tracking.path_from_map(told[-1], found[-1])
    np.testing.assert_allclose(tracking.moved(told, correction)[-1].cam_from_world, found[-1].cam_from_world, atol=1e-5)
    same = tracking.moved(told, jnp.eye(3, 4))
    np.testing.assert_allclose(same.cam_from_world, told.cam_from_world, atol=1e-6)


@functools.cache
def motion():
    """A red square slides over the room: (truth, what is found) without the map and with it."""
    views = cameras()
    depth, frames = photograph(views)
    truth = jnp.zeros((K + 1, H, W), bool)
    for i in range(K + 1):
        truth = truth.at[i, 40:62, 5 + 28 * i : 29 + 28 * i].set(True)
    seen = jnp.where(truth[..., None], jnp.array([1.0, 0.0, 0.0]), frames)
    find = jax.jit(moving_pixels, static_argnums=0)
    alone = find(MotionConfig(), seen, depth, views, jnp.zeros_like(frames), jnp.zeros((K + 1, H, W), bool))
    still = find(MotionConfig(), frames, depth, views, frames, jnp.ones((K + 1, H, W), bool))
    with_map = find(MotionConfig(), seen, depth, views, frames, jnp.ones((K + 1, H, W), bool))
    return np.asarray(truth), np.asarray(alone), np.asarray(with_map), np.asarray(still)


def test_what_moves_is_found():
    truth, alone, with_map, still = motion()
    for found in (alone, with_map):
        assert (found & truth).sum() / (found | truth).sum() > 0.6
    assert not still.any()


def test_wrong_depth_is_not_motion():
    views = cameras()
    depth, frames = photograph(views)
    none = jnp.zeros((K + 1, H, W), bool)
    found = jax.jit(moving_pixels, static_argnums=0)(
        MotionConfig(), frames, depth * 1.1, views, jnp.zeros_like(frames), none
    )
    assert found.mean() < 0.02


def test_seen_through_needs_another_colour_and_a_surface_behind():
    views = cameras()
    depth, frames = photograph(views)
    static = jnp.ones_like(depth, bool)
    mapped = views, depth, static
    centre = views[1].centers
    on_wall = views[1:2].unproject(depth[1:2])[0, 10:20, 10:30].reshape(-1, 3)
    own = frames[1, 10:20, 10:30].reshape(-1, 3)
    count = jax.jit(functools.partial(seen_through, depth_tolerance=0.2, color_tolerance=0.25))
    half_way = centre + 0.5 * (on_wall - centre)
    assert np.all(count(half_way, 1 - jnp.round(own), *mapped, frames) >= 1)
    in_own_color = count(half_way, own, *jax.tree.map(lambda leaf: leaf[1:2], mapped), frames[1:2])
    assert not np.any(in_own_color)
    assert not np.any(count(on_wall, 1 - jnp.round(own), *mapped, frames))  # on the surface
    assert not np.any(count(2 * on_wall - centre, 1 - jnp.round(own), *mapped, frames))  # behind it
    assert not np.any(count(half_way, 1 - jnp.round(own), views, depth, ~static, frames))  # what moves proves nothing


def test_config_refuses_what_cannot_work():
    with pytest.raises(InputError, match="stride is 0"):
        TrackingConfig(stride=0)
    with pytest.raises(InputError, match="above 0"):
        TrackingConfig(match_px=0.0)
    with pytest.raises(InputError, match="odd"):
        MotionConfig(window=4)
