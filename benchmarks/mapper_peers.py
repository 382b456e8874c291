"""The same bundle adjustment by other means: a vectorised Schur complement in NumPy, and Ceres through pyceres.

A problem is a dictionary of float64 arrays: source, target [e]; match [e, n, 2] and weight [e, n] (n pixels of the
source); pixels [n, 2]; lens [4]; pose [v, 4, 4] world-to-camera; inverse_depth [v, n]; fixed, how many of the first
poses stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Problem = dict[str, Any]


def numpy_schur(problem: Problem, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton with a little damping, as one would write it by hand: poses and inverse depths."""
    pose, depth = problem["pose"].copy(), problem["inverse_depth"].copy()
    source, target, fixed = problem["source"], problem["target"], problem["fixed"]
    v, n = depth.shape
    for _ in range(iterations):
        residual, jacobian, by_depth, weight, relative = _linearize(problem, pose, depth)
        weighted = jacobian * weight[..., None, None]  # [e, n, 2, 6]
        rows, wrows = jacobian.reshape(len(source), -1, 6), weighted.reshape(len(source), -1, 6)
        hessian = wrows.transpose(0, 2, 1) @ rows
        gradient = np.einsum("eka,ek->ea", wrows, residual.reshape(len(source), -1))
        cross = np.einsum("enca,enc->ean", weighted, by_depth)
        back = -np.stack([_adjoint(t) for t in relative])  # from the source's twist to the edge's
        h, g, e = np.zeros((v, v, 6, 6)), np.zeros((v, 6)), np.zeros((v, v, 6, n))
        c, b = np.full((v, n), 1e-9), np.zeros((v, n))
        for k, (i, j) in enumerate(zip(source, target, strict=True)):
            a = back[k]
            h[i, i] += a.T @ hessian[k] @ a
            h[i, j] += a.T @ hessian[k]
            h[j, i] += hessian[k] @ a
            h[j, j] += hessian[k]
            g[i] += a.T @ gradient[k]
            g[j] += gradient[k]
            e[i, i] += a.T @ cross[k]
            e[i, j] += cross[k]
            c[i] += weight[k] * (by_depth[k] ** 2).sum(-1)
            b[i] += weight[k] * (by_depth[k] * residual[k]).sum(-1)
        flat = e.reshape(v, 6 * v, n)
        scaled = flat / c[:, None]
        full = h.transpose(0, 2, 1, 3).reshape(6 * v, 6 * v)
        system = full - (scaled @ flat.transpose(0, 2, 1)).sum(0)
        right = g.ravel() - np.einsum("kan,kn->a", scaled, b)
        free = slice(6 * fixed, None)
        step = np.zeros(6 * v)
        system = system[free, free] + 1e-6 * np.diag(np.diag(full)[free])
        step[free] = np.linalg.solve(system, right[free])
        depth = np.maximum(depth + (b - np.einsum("kan,a->kn", flat, step)) / c, 1e-3)
        pose = np.stack([_exp(xi) for xi in step.reshape(v, 6)]) @ pose
    return pose, depth


def _linearize(problem: Problem, pose: np.ndarray, depth: np.ndarray):
    fx, fy, cx, cy = problem["lens"]
    relative = pose[problem["target"]] @ np.linalg.inv(pose)[problem["source"]]
    d = depth[problem["source"]]
    ray = np.column_stack([(problem["pixels"] - [cx, cy]) / [fx, fy], np.ones(len(problem["pixels"]))])
    point = ray @ relative[:, :3, :3].transpose(0, 2, 1) + d[..., None] * relative[:, None, :3, 3]
    valid = point[..., 2] > 0.25
    z = np.where(valid, point[..., 2], 1.0)
    x, y, h, t = point[..., 0] / z, point[..., 1] / z, d / z, relative[:, None, :3, 3]
    zero = np.zeros_like(x)
    jacobian = np.stack(
        [
            fx * np.stack([h, zero, -x * h, -x * y, 1 + x * x, -y], -1),
            fy * np.stack([zero, h, -y * h, -(1 + y * y), x * y, x], -1),
        ],
        axis=-2,
    )
    by_depth = np.stack([fx * (t[..., 0] - t[..., 2] * x) / z, fy * (t[..., 1] - t[..., 2] * y) / z], axis=-1)
    residual = problem["match"] - np.stack([fx * x + cx, fy * y + cy], axis=-1)
    return residual, jacobian, by_depth, problem["weight"] * valid, relative


def _hat(w: np.ndarray) -> np.ndarray:
    return np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])


def _adjoint(pose: np.ndarray) -> np.ndarray:
    rotation = pose[:3, :3]
    return np.block([[rotation, _hat(pose[:3, 3]) @ rotation], [np.zeros((3, 3)), rotation]])


def _exp(xi: np.ndarray) -> np.ndarray:
    angle = max(np.linalg.norm(xi[3:]), 1e-12)
    k = _hat(xi[3:])
    a, b, c = np.sin(angle) / angle, (1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3
    pose = np.eye(4)
    pose[:3, :3] = np.eye(3) + a * k + b * k @ k
    pose[:3, 3] = (np.eye(3) + b * k + c * k @ k) @ xi[:3]
    return pose


def ceres(
    problem: Problem, iterations: int, threads: int, *, rounds: int = 2, trust_region: float = 1e4
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Ceres as pyceres and pycolmap give it: points in space, DENSE_SCHUR, poses on their manifold.

    The wheel has no cost with inverse depth: each pixel of a source frame is a point in space, held to its pixel there
    by a weight of 1e4. It has no manifold for a pose of 7 numbers either, nor can one be written in Python: the real
    part of the quaternion is held, and the quaternion normalised after each of `rounds` (turns are small here).

    Args:
        iterations: of all rounds together.
        trust_region: radius with which each round begins; 1e4 is Ceres's own.

    Returns: poses, inverse depths, and seconds of building and of solving.
    """
    import time

    import pyceres
    import pycolmap
    from pycolmap import cost_functions
    from scipy.spatial.transform import Rotation

    began = time.perf_counter()
    poses = [np.r_[Rotation.from_matrix(p[:3, :3]).as_quat(), p[:3, 3]] for p in problem["pose"]]
    lens = np.array(problem["lens"])
    ray = np.column_stack([(problem["pixels"] - lens[2:]) / lens[:2], np.ones(len(problem["pixels"]))])
    back = np.linalg.inv(problem["pose"])
    points = [(ray / d[:, None]) @ b[:3, :3].T + b[:3, 3] for d, b in zip(problem["inverse_depth"], back, strict=True)]
    model = pycolmap.CameraModelId.PINHOLE
    solver = pyceres.Problem()
    held = np.eye(2) * 1e-8
    for i in np.unique(problem["source"]):
        edges = np.flatnonzero(problem["source"] == i)
        for k in np.flatnonzero((problem["weight"][edges] > 0).any(0)):
            cost = cost_functions.ReprojErrorCost(model, held, problem["pixels"][k])
            solver.add_residual_block(cost, None, [points[i][k], poses[i], lens])
            for e in edges:
                if problem["weight"][e, k] > 0:
                    cost = cost_functions.ReprojErrorCost(model, problem["match"][e, k])
                    solver.add_residual_block(cost, None, [points[i][k], poses[problem["target"][e]], lens])
    solver.set_parameter_block_constant(lens)
    for index, pose in enumerate(poses):
        if index < problem["fixed"]:
            solver.set_parameter_block_constant(pose)
        else:
            solver.set_manifold(pose, pyceres.SubsetManifold(7, [3]))
    options = pyceres.SolverOptions()
    options.linear_solver_type = pyceres.LinearSolverType.DENSE_SCHUR
    options.max_num_iterations = -(-iterations // rounds)
    options.initial_trust_region_radius = trust_region
    options.num_threads = threads
    options.function_tolerance = options.gradient_tolerance = options.parameter_tolerance = 0.0
    built = time.perf_counter()
    for _ in range(rounds):
        pyceres.solve(options, solver, pyceres.SolverSummary())
        for pose in poses:
            pose[:4] /= np.linalg.norm(pose[:4])
    solved = time.perf_counter()
    result = np.tile(np.eye(4), (len(poses), 1, 1))
    for matrix, pose in zip(result, poses, strict=True):
        matrix[:3, :3], matrix[:3, 3] = Rotation.from_quat(pose[:4]).as_matrix(), pose[4:]
    inverse_depth = np.stack([1 / (p @ m[2, :3] + m[2, 3]) for p, m in zip(points, result, strict=True)])
    return result, inverse_depth, {"build": built - began, "solve": solved - built}
