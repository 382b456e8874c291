"""v views with depth, and exact matches between them: ground truth for bundle adjustment.

Depths of different views need not be of one scene: each match is made, and adjusted, with the depth of its source only.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.mapper.problem import Matches, Variables, max_degree
from spatia_jax.mapper.reprojection import pixel_grid, warp

HEIGHT, WIDTH = 24, 32


@cache
def ground_truth(num_frames: int = 6, seed: int = 3) -> Variables:
    """Views a few centimetres and degrees apart, each before a bumpy surface 1 to 4 m away with steps in depth."""
    generator = np.random.default_rng(seed)
    moves = generator.normal(size=(num_frames, 6)) * ([0.06] * 3 + [0.03] * 3)
    poses = jaxlie.SE3.exp(jnp.asarray(np.cumsum(moves, axis=0), jnp.float32))
    y, x = np.meshgrid(np.linspace(0, 1, HEIGHT), np.linspace(0, 1, WIDTH), indexing="ij")
    slope, phase = generator.normal(size=(2, num_frames, 2, 1, 1))
    depth = 2 + 0.4 * (slope[:, 0] * x + slope[:, 1] * y) + 0.3 * np.sin(9 * x + 7 * y + phase[:, 0])
    depth = np.clip(depth + 0.7 * (np.sin(5 * x - 8 * y + phase[:, 1]) > 0.3), 0.8, 4)
    cameras = Cameras.from_se3(poses, jnp.array([0.9, 1.2, 0.5, 0.5]))
    return Variables.start(cameras, jnp.asarray(1 / depth, jnp.float32))


def exact_matches(truth: Variables, radius: int = 2, noise_px: float = 0.0, seed: int = 0) -> Matches:
    """Edges between frames up to `radius` apart; weight 1 where the match lies on the target image."""
    num_frames, height, width = truth.inverse_depth.shape
    pairs = [(i, j) for i in range(num_frames) for j in range(num_frames) if 0 < abs(i - j) <= radius]
    source, target = (jnp.array(column, jnp.int32) for column in zip(*pairs, strict=True))
    poses = truth.poses.wxyz_xyz
    relative = jaxlie.SE3(poses[target]) @ jaxlie.SE3(poses[source]).inverse()
    pixels, ratio, _, _ = jax.vmap(warp, (0, 0, 0, 0, None))(
        relative.as_matrix()[:, :3], truth.inverse_depth[source].reshape(len(pairs), -1),
        truth.lens[source], truth.lens[target], pixel_grid(height, width),
    )  # fmt: skip
    u, v = pixels[:, 0], pixels[:, 1]
    seen = (ratio > 0) & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    noise = noise_px * np.random.default_rng(seed).normal(size=(len(pairs), height, width, 2))
    pixels = jnp.swapaxes(pixels, 1, 2).reshape(-1, height, width, 2) + jnp.asarray(noise, jnp.float32)
    weights = jnp.broadcast_to(seen.reshape(-1, height, width, 1), pixels.shape).astype(jnp.float32)
    return Matches(source, target, pixels, weights, max_degree(source, num_frames))


def perturbed(truth: Variables, *, metres: float, degrees: float, depth: float, kept: int, seed: int = 0) -> Variables:
    """The truth with noise of these standard deviations (relative for depth); the first `kept` poses are exact."""
    generator = np.random.default_rng(seed)
    num_frames = len(truth.lens)
    xi = generator.normal(size=(num_frames, 6)) * ([metres / 3**0.5] * 3 + [np.radians(degrees) / 3**0.5] * 3)
    xi[:kept] = 0
    factor = np.exp(depth * generator.normal(size=truth.inverse_depth.shape))
    return dataclasses.replace(
        truth,
        poses=jaxlie.SE3.exp(jnp.asarray(xi, jnp.float32)) @ truth.poses,
        inverse_depth=truth.inverse_depth * jnp.asarray(factor, jnp.float32),
    )


def pose_errors(found: Variables, truth: Variables) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the camera centres, and angle in degrees, of every frame."""

    def centers(variables: Variables) -> np.ndarray:
        return np.asarray(Cameras.from_se3(variables.poses, jnp.ones(4)).centers)

    turned = (found.poses.rotation() @ truth.poses.rotation().inverse()).log()
    return np.linalg.norm(centers(found) - centers(truth), axis=-1), np.degrees(np.linalg.norm(turned, axis=-1))
