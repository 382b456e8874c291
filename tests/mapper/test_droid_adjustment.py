"""DROID-SLAM's bundle adjustment: its own states after one to four iterations (golden), and what the damping does."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

from spatia_jax.mapper.droid import droid_adjust
from spatia_jax.mapper.problem import Matches, Variables, max_degree

GOLDEN_ERROR = 1e-4  # relative L2


@functools.partial(jax.jit, static_argnames="iterations")
def solve(matches, eta, start, fixed, iterations):
    return droid_adjust(matches, eta, start, fixed, iterations)


def se3(poses):
    """[v, 7] of t, q_xyzw."""
    return jaxlie.SE3(jnp.asarray(np.concatenate([poses[:, 6:], poses[:, 3:6], poses[:, :3]], axis=-1)))


@pytest.fixture(scope="module")
def problem(golden_dir):
    arrays = {
        name: value for name, value in np.load(golden_dir / "droid.npz").items() if name.startswith(("ba", "ii", "jj"))
    }
    ii, jj = (arrays[name].astype(np.int32) for name in ("ii", "jj"))
    frames = arrays["ba_poses0"].shape[1]
    matches = Matches(
        jnp.asarray(ii), jnp.asarray(jj), arrays["ba_target"][0], arrays["ba_weight"][0], max_degree(ii, frames)
    )
    start = Variables(
        se3(arrays["ba_poses0"][0]), jnp.asarray(arrays["ba_disps0"][0]), jnp.asarray(arrays["ba_intrinsics"][0]),
        jnp.tile(jnp.array([1.0, 0.0]), (frames, 1)),
    )  # fmt: skip
    return arrays, matches, start, jnp.arange(frames) < 1


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_iterations_golden(problem, iterations):
    arrays, matches, start, fixed = problem
    found = solve(matches, arrays["ba_eta"][0], start, fixed, iterations)
    poses, expected = found.poses.wxyz_xyz, se3(arrays[f"ba_poses_{iterations}"][0]).wxyz_xyz
    sign = np.sign((poses[:, :4] * expected[:, :4]).sum(-1, keepdims=True))  # q and -q are one rotation
    poses = np.concatenate([sign * poses[:, :4], poses[:, 4:]], axis=-1)
    depths, wanted = found.inverse_depth, arrays[f"ba_disps_{iterations}"][0]
    assert np.linalg.norm(poses - expected) <= GOLDEN_ERROR * np.linalg.norm(expected)
    assert np.linalg.norm(depths - wanted) <= GOLDEN_ERROR * np.linalg.norm(wanted)
    moved = np.linalg.norm(poses - start.poses.wxyz_xyz)
    assert np.linalg.norm(poses - expected) <= 1e-2 * moved  # the change itself, which is small against the poses
    np.testing.assert_array_equal(found.poses.wxyz_xyz[0], start.poses.wxyz_xyz[0])


def test_damped_depth_stays(problem):
    _, matches, start, fixed = problem
    found = solve(matches, jnp.full_like(start.inverse_depth, 1e6), start, fixed, 2)
    np.testing.assert_allclose(found.inverse_depth, start.inverse_depth, atol=1e-5)
    assert np.abs(found.poses.wxyz_xyz - start.poses.wxyz_xyz).max() > 1e-4
