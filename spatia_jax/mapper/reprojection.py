"""Where the pixels of one frame land in another, and how that changes: residuals and analytic Jacobians of one edge.

A pixel u of the source frame i with inverse depth d is the homogeneous point (x, 1, d), x its ray at depth 1. In the
target frame j it is X' = R x + d t with (R, t) = T_ji = T_j T_i^-1 (world-to-camera poses), and it lands on
p = f X'_xy / X'_z + c. Poses move by T <- exp(xi) T, xi = (translation, rotation), so

    dp/dxi_j = f [h, 0, -x h | -x y, 1 + x^2, -y]        h = d / X'_z, (x, y) = X'_xy / X'_z
               f [0, h, -y h | -(1 + y^2), x y, x]
    dp/dxi_i = -dp/dxi_j Ad(T_ji)
    dp/dd    = f (t_xy - (x, y) t_z) / X'_z

(DROID-SLAM, arXiv 2108.10869, appendix). The adjustment never forms dp/dxi_i: an edge sees its two poses only through
the twist of one against the other, zeta = xi_j - Ad(T_ji) xi_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_DEPTH_RATIO = 0.25  # a point may come four times nearer from frame to frame; beyond, it counts as behind (DROID)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EdgeTerms:
    """One edge, linearised; n = h w pixels of the source frame.

    Attributes:
        residual: [2, n] match minus prediction, in pixels.
        pose: [2, 6, n] change of the prediction with the edge's twist.
        depth: [2, n] its change with the pixel's inverse depth.
        lens: [2, 4, n] its change with (log fx, log fy, cx, cy) of both frames.
        valid: [n] bool, the point is before the target camera.
    """

    residual: Array
    pose: Array
    depth: Array
    lens: Array
    valid: Array


def pixel_grid(height: int, width: int) -> Float[Array, "2 n"]:
    """Columns and rows of the pixels in reading order; integers are pixel centres."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([columns.ravel(), rows.ravel()]).astype(jnp.float32)


def warp(
    relative: Float[Array, "3 4"],
    inverse_depth: Float[Array, " n"],
    lens_i: Float[Array, " 4"],
    lens_j: Float[Array, " 4"],
    pixels: Float[Array, "2 n"],
) -> tuple[Float[Array, "2 n"], Float[Array, " n"], Float[Array, "2 n"], Float[Array, "2 n"]]:
    """Where pixels of frame i land in frame j.

    Args:
        relative: T_ji.
        inverse_depth: 1 / z-depth in frame i.
        lens_i, lens_j: fx fy cx cy in pixels.

    Returns:
        Pixels in j, the ratio X'_z of the depths in j and i (1 where it is too small to mean anything: see
        `MIN_DEPTH_RATIO`; the pixels are finite then, and mean nothing), rays (x, y) in j and rays in i.
    """
    rotation, translation = relative[:, :3], relative[:, 3]
    ray = (pixels - lens_i[2:, None]) / lens_i[:2, None]
    # Three fused multiply-adds per row instead of a matrix product: exact float32 on every backend.
    point = (
        rotation[:, :1] * ray[0] + rotation[:, 1:2] * ray[1] + rotation[:, 2:] + translation[:, None] * inverse_depth
    )
    ratio = jnp.where(point[2] > MIN_DEPTH_RATIO, point[2], 1.0)
    seen = point[:2] / ratio
    return lens_j[:2, None] * seen + lens_j[2:, None], jnp.where(point[2] > MIN_DEPTH_RATIO, ratio, 0.0), seen, ray


def linearize(
    relative: Float[Array, "3 4"],
    inverse_depth: Float[Array, " n"],
    lens_i: Float[Array, " 4"],
    lens_j: Float[Array, " 4"],
    match: Float[Array, "2 n"],
    pixels: Float[Array, "2 n"],
) -> EdgeTerms:
    """Residual and Jacobians of one edge. Everything is finite, also where `valid` is false."""
    predicted, ratio, (x, y), ray = warp(relative, inverse_depth, lens_i, lens_j, pixels)
    rotation, t = relative[:, :3], relative[:, 3]
    (fx, fy), valid = lens_j[:2], ratio > 0
    per_depth = 1 / jnp.where(valid, ratio, 1.0)
    h, zero, one = inverse_depth * per_depth, jnp.zeros_like(x), jnp.ones_like(x)
    pose = jnp.stack(
        [
            jnp.stack([fx * h, zero, -fx * x * h, -fx * x * y, fx * (1 + x * x), -fx * y]),
            jnp.stack([zero, fy * h, -fy * y * h, -fy * (1 + y * y), fy * x * y, fy * x]),
        ]
    )

    def moved(direction: Array) -> Array:
        """Change of the prediction as the homogeneous point moves along a direction [3]."""
        return jnp.stack([fx * (direction[0] - x * direction[2]), fy * (direction[1] - y * direction[2])]) * per_depth

    along_x, along_y = moved(rotation[:, 0]), moved(rotation[:, 1])
    lens = jnp.stack(
        [
            jnp.stack(
                [
                    fx * x - along_x[0] * ray[0],
                    -along_y[0] * ray[1],
                    one - along_x[0] / lens_i[0],
                    -along_y[0] / lens_i[1],
                ]
            ),
            jnp.stack(
                [
                    -along_x[1] * ray[0],
                    fy * y - along_y[1] * ray[1],
                    -along_x[1] / lens_i[0],
                    one - along_y[1] / lens_i[1],
                ]
            ),
        ]
    )
    return EdgeTerms(match - predicted, pose, moved(t), lens, valid)
