"""The optimum of bundle adjustment is the one that other solvers find."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest
from mapper.adjustment_scene import exact_matches, ground_truth, perturbed

from benchmarks import mapper_peers
from benchmarks.mapper import as_arrays, pose_rmse, scene
from spatia_jax.mapper import normal_equations
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust, total_cost
from spatia_jax.mapper.problem import Priors
from spatia_jax.mapper.reprojection import pixel_grid

solve = jax.jit(adjust, static_argnums=3)


@pytest.mark.slow
def test_noisy_matches_have_the_optimum_that_scipy_finds():
    """Noise of 0.5 px of a 48 x 64 grid; scipy in float64, rotation vectors, Jacobians by finite differences."""
    from scipy.optimize import least_squares
    from scipy.sparse import lil_matrix
    from scipy.spatial.transform import Rotation

    full = jax.tree.map(lambda leaf: leaf[:4], ground_truth())
    truth = dataclasses.replace(full, inverse_depth=full.inverse_depth[:, ::3, ::4], lens=full.lens / jnp.float32(3.5))
    start = perturbed(truth, metres=0.05, degrees=2, depth=0.1, kept=2)
    matches = exact_matches(truth, noise_px=0.05)
    found = solve(matches, Priors.none(start, 2), start, AdjustmentConfig(iterations=20)).variables

    source, target = np.asarray(matches.source), np.asarray(matches.target)
    lens, n = np.asarray(truth.lens[0], np.float64), 64
    ray = np.column_stack([(np.asarray(pixel_grid(8, 8)).T - lens[2:]) / lens[:2], np.ones(n)])
    weights = np.asarray(matches.weights, np.float64).reshape(-1, n, 2)
    seen = np.asarray(matches.pixels, np.float64).reshape(-1, n, 2)
    base = np.asarray(start.poses.as_matrix(), np.float64)

    def residuals(x):
        pose = base.copy()
        turned = Rotation.from_rotvec(x[:12].reshape(2, 6)[:, :3]).as_matrix()
        pose[2:, :3, :3] = turned @ base[2:, :3, :3]
        pose[2:, :3, 3] = base[2:, :3, 3] + x[:12].reshape(2, 6)[:, 3:]
        relative = pose[target] @ np.linalg.inv(pose)[source]
        depth = x[12:].reshape(4, n)[source]
        point = ray @ relative[:, :3, :3].transpose(0, 2, 1) + depth[..., None] * relative[:, None, :3, 3]
        return (np.sqrt(weights) * (seen - point[..., :2] / point[..., 2:] * lens[:2] - lens[2:])).ravel()

    pattern = lil_matrix((len(source) * n * 2, 12 + 4 * n), dtype=int)
    for e, i in enumerate(source):
        rows = np.arange(e * 2 * n, (e + 1) * 2 * n)
        pattern[rows, :12] = 1
        pattern[rows, 12 + i * n + np.arange(2 * n) // 2] = 1
    x0 = np.r_[np.zeros(12), np.asarray(start.inverse_depth, np.float64).ravel()]
    best = least_squares(residuals, x0, jac_sparsity=pattern, x_scale="jac", max_nfev=200, xtol=1e-12, ftol=1e-12)

    packed = normal_equations.pack(matches, 4)
    ours = float(total_cost(found, Priors.none(start, 2), packed, AdjustmentConfig()))
    assert abs(ours / (2 * best.cost) - 1) < 0.01
    shift = best.x[:12].reshape(2, 6)
    their_centers = -np.einsum(
        "vji,vj->vi", Rotation.from_rotvec(shift[:, :3]).as_matrix() @ base[2:, :3, :3], base[2:, :3, 3] + shift[:, 3:]
    )
    # 1 % of the 5 cm that the start was off: with 64 pixels a frame the optimum is flat
    np.testing.assert_allclose(found.cameras().centers[2:], their_centers, atol=5e-4)


@pytest.mark.parity
def test_ceres_finds_no_better_optimum():
    """8 keyframes x 48 x 64 x 26 edges, matches of 0.5 px noise, 5 cm and 2 degrees and 10 % of depth off at first.

    From there Ceres is still 1.5 % above our cost after 200 iterations: its wheel has no manifold for a pose
    (`mapper_peers`). From our optimum on it finds nothing better, and leaves the cameras where they are.
    """
    pytest.importorskip("pyceres")
    pytest.importorskip("pycolmap")
    truth, start, matches = scene(8, 2)
    priors, config = Priors.none(start, 2), AdjustmentConfig(iterations=20)
    ours = solve(matches, priors, start, config).variables
    packed = normal_equations.pack(matches, 8)

    def cost(variables) -> float:
        return float(total_cost(variables, priors, packed, config))

    def ceres(begin, iterations: int):
        problem = as_arrays(begin, matches)
        poses, depth, _ = mapper_peers.ceres(problem, iterations, os.cpu_count() or 1, rounds=10, trust_region=1e8)
        return dataclasses.replace(
            begin, poses=jaxlie.SE3.from_matrix(jnp.asarray(poses, jnp.float32)),
            inverse_depth=jnp.asarray(depth.reshape(begin.inverse_depth.shape), jnp.float32),
        )  # fmt: skip

    theirs, from_ours = ceres(start, 200), ceres(ours, 100)
    print(f"cost at the start {cost(start):.0f}, ours {cost(ours):.0f}, Ceres {cost(theirs):.0f}", end="")
    print(f", Ceres from ours {cost(from_ours):.0f}")
    assert cost(start) > 2 * cost(ours)
    assert 0.98 < cost(ours) / cost(theirs) < 1.01
    assert abs(cost(from_ours) / cost(ours) - 1) < 0.01
    off = pose_rmse(start.poses.as_matrix(), truth)
    assert off > 5 * pose_rmse(ours.poses.as_matrix(), truth)
    assert pose_rmse(from_ours.poses.as_matrix(), ours) < 0.01 * off
