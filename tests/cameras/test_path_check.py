"""The check before compute: a path that leaves the known scene or runs into it is reported, with its frames."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras, check_path, parse_path
from spatia_jax.errors import InputError

START = Cameras(jnp.eye(4)[:3], jnp.array([0.8, 1.4, 0.5, 0.5]))


@pytest.fixture(scope="module")
def wall() -> np.ndarray:
    """What the first camera sees: a wall 2 away."""
    return np.asarray(START.unproject(jnp.full((128, 224), 2.0))).reshape(-1, 3)


def test_staying_is_fine(wall):
    report = check_path(parse_path("dolly in 0.5; there and back", START, 25, 2.0), wall)
    assert report.warnings == ()
    assert report.unknown.max() < 0.01
    np.testing.assert_allclose(report.clearance.min(), 1.5, atol=0.02)


def test_turning_away_names_the_frames(wall):
    report = check_path(parse_path("pan right 90; there and back", START, 41, 2.0), wall)
    (warning,) = report.warnings
    outside = np.flatnonzero(report.unknown > 0.6)
    assert warning.startswith(f"frames {outside[0]}-{outside[-1]}: up to 100% of the view is unknown")
    assert 0 < outside[0] < 20 < outside[-1] < 40
    assert report.unknown[20] == 1.0


def test_how_much_is_unknown_is_right(wall):
    """Truck until half of the view is beside the wall."""
    report = check_path(parse_path(f"truck right {1 / 0.8}", START, 5, 2.0), wall)
    assert report.unknown[-1] == pytest.approx(0.5, abs=0.05)


def test_passing_through_a_wall_between_two_frames_is_seen(wall):
    report = check_path(parse_path("dolly in 4", START, 2, 2.0), wall)
    assert report.clearance[0] < 0.02
    assert any(w.startswith("frame 0: the camera passes") and "through a surface" in w for w in report.warnings)


def test_distance_can_be_chosen(wall):
    cameras = parse_path("dolly in 1", START, 5, 2.0)
    assert check_path(cameras, wall, min_clearance=0.9).warnings == ()
    assert "the camera passes" in check_path(cameras, wall, min_clearance=1.2).warnings[0]


def test_points_that_do_not_count_are_not_seen(wall):
    cameras = parse_path("dolly in 4", START, 9, 2.0)
    beside = np.concatenate([wall, wall + np.array([0, 0, 8])])
    valid = np.arange(len(beside)) >= len(wall)
    report = check_path(cameras, jnp.asarray(beside), jnp.asarray(valid))
    np.testing.assert_allclose(report.clearance.min(), 6, atol=0.05)
    with pytest.raises(InputError, match="the map holds no points"):
        check_path(cameras, beside, np.zeros(len(beside), bool))


def test_stray_points_are_not_a_surface(wall):
    stray = np.concatenate([wall, [[0, 0, 0.5], [0, 0, 0.6]]])
    assert check_path(parse_path("dolly in 1", START, 9, 2.0), stray).warnings == ()
