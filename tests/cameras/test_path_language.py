"""The path language: each word moves the camera as its crew would, and what is not a word is answered helpfully."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.cameras import PATH_HELP, Cameras, parse_path
from spatia_jax.cameras.language import _MOVES
from spatia_jax.errors import InputError

DEPTH = 2.0
INTRINSICS = jnp.array([0.8, 1.4, 0.5, 0.5])
AT_ORIGIN = Cameras(jnp.eye(4)[:3], INTRINSICS)
ANYWHERE = Cameras.from_se3(jaxlie.SE3.exp(jax.random.normal(jax.random.key(3), (6,))), INTRINSICS)


def path(text: str, start: Cameras = AT_ORIGIN, frames: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Camera-to-world rotations [t, 3, 3] and centres [t, 3]."""
    pose = np.asarray(parse_path(text, start, frames, DEPTH).world_from_cam)
    return pose[..., :3], pose[..., 3]


@pytest.mark.parametrize(
    ("text", "forward", "up"),
    [
        ("pan left 90", (-1, 0, 0), (0, -1, 0)),
        ("pan right 90", (1, 0, 0), (0, -1, 0)),
        ("tilt up 90", (0, -1, 0), (0, 0, -1)),
        ("tilt down 90", (0, 1, 0), (0, 0, 1)),
        ("roll right 90", (0, 0, 1), (1, 0, 0)),
        ("roll left 90", (0, 0, 1), (-1, 0, 0)),
        ("spin", (0, 0, 1), (0, -1, 0)),
        ("Turn LEFT 90 degrees", (-1, 0, 0), (0, -1, 0)),
        ("look up by 90°", (0, -1, 0), (0, 0, -1)),
        ("pan left", (-np.sin(np.pi / 6), 0, np.cos(np.pi / 6)), (0, -1, 0)),
    ],
)
def test_turns_keep_the_position(text, forward, up):
    rotation, center = path(text)
    np.testing.assert_allclose(rotation[-1, :, 2], forward, atol=1e-6)
    np.testing.assert_allclose(-rotation[-1, :, 1], up, atol=1e-6)
    np.testing.assert_allclose(center, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("dolly in 1.5", (0, 0, 1.5)),
        ("pull out 1.5 m", (0, 0, -1.5)),
        ("truck right 0.5", (0.5, 0, 0)),
        ("move left .5", (-0.5, 0, 0)),
        ("pedestal up 0.3 metres", (0, -0.3, 0)),
        ("down 0.3", (0, 0.3, 0)),
        ("push in", (0, 0, DEPTH / 4)),
        ("forward 10%", (0, 0, DEPTH / 10)),
        ("truck right 1 and pedestal up 1, dolly in 1", (1, -1, 1)),
        ("pan right 90; dolly in 1", (1, 0, 0)),
        ("pan right 90 and dolly in 1", (0, 0, 1)),
        ("hold 2s", (0, 0, 0)),
    ],
)
def test_moves_are_along_the_cameras_own_axes(text, end):
    np.testing.assert_allclose(path(text)[1][-1], end, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "end"),
    [("right 90", (2, 0, 2)), ("left 90", (-2, 0, 2)), ("up 90", (0, -2, 2)), ("right 360", (0, 0, 0))],
)
def test_an_orbit_keeps_the_distance_to_its_pivot_and_looks_at_it(text, end):
    rotation, center = path(f"orbit {text}", frames=17)
    pivot = np.array([0, 0, DEPTH])
    np.testing.assert_allclose(center[-1], end, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(center - pivot, axis=-1), DEPTH, atol=1e-6)
    np.testing.assert_allclose(center + DEPTH * rotation[..., 2], np.broadcast_to(pivot, center.shape), atol=1e-6)


def test_an_orbit_after_a_dolly_turns_about_the_same_point():
    _, center = path("dolly in 1.5; orbit right 180", frames=33)
    np.testing.assert_allclose(center[-1], [0, 0, 2.5], atol=1e-6)


def test_a_pan_after_a_tilt_keeps_the_horizon_level():
    rotation, _ = path("tilt up 20; pan left 70")
    np.testing.assert_allclose(rotation[:, 1, 0], 0, atol=1e-6)  # the camera's right has no vertical part


def test_the_order_of_simultaneous_moves_does_not_matter():
    one = path("orbit right 30 and dolly in 0.5, tilt up 10", ANYWHERE)
    other = path("tilt up 10, dolly in 0.5 and orbit right 30", ANYWHERE)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("move", _MOVES)
@pytest.mark.parametrize("start", [AT_ORIGIN, ANYWHERE], ids=["origin", "anywhere"])
def test_there_and_back_ends_at_the_start_exactly(move, start):
    there = parse_path(f"{move}; pan left 20, there and back", start, 10, DEPTH)
    for end in (0, -1):
        np.testing.assert_array_equal(there.cam_from_world[end], start.cam_from_world)
        np.testing.assert_array_equal(there.intrinsics[end], start.intrinsics)
    np.testing.assert_allclose(there.cam_from_world, there.cam_from_world[::-1], atol=1e-6)
    assert move == "hold" or np.ptp(np.asarray(there.cam_from_world), axis=0).max() > 0.01


def test_there_and_back_retraces_everything_before_it():
    _, center = path("dolly in 1; truck right 1; there and back; pedestal up 1", frames=6)
    np.testing.assert_allclose(center, [[0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0], [0, -1, 0]], atol=1e-6)


def test_a_path_is_relative_to_where_it_starts():
    relative = np.asarray(parse_path("orbit right 30; dolly in 1", AT_ORIGIN, 5, DEPTH).as_se3().as_matrix())
    there = np.asarray(parse_path("orbit right 30; dolly in 1", ANYWHERE[None], 5, DEPTH).as_se3().as_matrix())
    np.testing.assert_allclose(there, relative @ np.asarray(ANYWHERE.as_se3().as_matrix()), atol=1e-5)


def test_frames_are_shared_in_proportion_to_time():
    _, center = path("dolly in 1 over 3s; truck right 1", frames=5)
    np.testing.assert_allclose(center[3:], [[0, 0, 1], [1, 0, 1]], atol=1e-6)
    _, center = path("hold 3s then truck right 1", frames=5)
    np.testing.assert_allclose(center[:, 0], [0, 0, 0, 0, 1], atol=1e-6)


def test_motion_is_eased():
    step = np.diff(path("dolly in 1", frames=33)[1][:, 2])
    assert np.all(step > 0)
    assert max(step[0], step[-1]) < 0.2 * step.max()


def test_zoom_changes_the_focal_length_only():
    cameras = parse_path("zoom in 2x; zoom out 4", ANYWHERE, 3, DEPTH)
    scale = np.array([[1, 1, 1, 1], [2, 2, 1, 1], [0.5, 0.5, 1, 1]])
    np.testing.assert_allclose(cameras.intrinsics, np.asarray(INTRINSICS) * scale, rtol=1e-6)
    np.testing.assert_allclose(cameras.cam_from_world, np.repeat(ANYWHERE.cam_from_world[None], 3, 0), atol=1e-6)


def test_one_frame_is_the_start():
    np.testing.assert_array_equal(parse_path("spin", ANYWHERE, 1, DEPTH).cam_from_world[0], ANYWHERE.cam_from_world)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pann left 30", "'pann left 30' is not a move; did you mean 'pan left'"),
        ("pan 30", "is not a move; did you mean 'pan "),
        ("fly to the moon", "Known: pan left, pan right, .*there and back"),
        ("dolly in 1; wobble", "'wobble' is not a move"),
        ("pan left 30 and", "'' is not a move"),
        ("pan left 3 m", "is in 'm', expected degrees"),
        ("dolly in 45 degrees", "is in 'degrees', expected metres"),
        ("dolly in -1", "expected an amount above 0"),
        ("zoom in 0.5", "expected a factor above 1"),
        ("dolly in 1 over 0s", "expected a duration above 0"),
        ("", "no moves, expected for instance"),
        (" ; ", "no moves"),
        ("there and back", "nothing to retrace"),
        ("dolly in 1 2", "is not a move"),
    ],
)
def test_what_is_not_understood_is_answered_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_path(text, AT_ORIGIN, 9, DEPTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("frames", "depth"), [(0, 1.0), (9, 0.0), (9, float("nan"))])
def test_a_path_needs_frames_and_depth(frames, depth):
    with pytest.raises(InputError, match="expected"):
        parse_path("dolly in", AT_ORIGIN, frames, depth)


def test_a_path_starts_at_one_camera():
    with pytest.raises(InputError, match="a path starts at one camera"):
        parse_path("dolly in", parse_path("spin", AT_ORIGIN, 2, DEPTH), 9, DEPTH)


def test_the_help_names_every_move():
    for move in _MOVES:
        verb, *direction = move.split()
        line = next(line for line in PATH_HELP.splitlines() if line.startswith(f"  {verb}"))
        assert all(word in line for word in direction)
