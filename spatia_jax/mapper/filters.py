"""Which pixels may enter the map: not moving, not on a depth edge, and confirmed by other views of the clip."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatia_jax.cameras.camera import Cameras


def motion_mask(
    frames: Float[Array, "t h w 3"],
    map_color: Float[Array, "t h w 3"],
    log_ratio: Float[Array, "t h w"],
    covered: Bool[Array, "t h w"],
    *,
    color_tolerance: float,
    depth_tolerance: float,
    window: int,
) -> Bool[Array, "t h w"]:
    """Where a frame contradicts the map: colour and depth residuals, each in units of its tolerance, add up to 2.

    Either alone has to be twice as large: light changes colours and the prior errs in depth, but something that moved
    usually shows in both. Colours are compared after a 3 x 3 mean (splats are a pixel off), and a pixel moves when the
    majority of the covered pixels of its window does, and at least one of it is covered.

    Args:
        frames, map_color: colours in [0, 1].
        log_ratio: log(z_map / z_frame), used where `covered`.
        covered: where the map shows in the frame.
    """
    difference = jnp.where(covered[..., None], frames - map_color, 0.0)
    share = jnp.maximum(box_mean(covered.astype(frames.dtype), 3), 1e-6)
    color_error = jnp.linalg.norm(box_mean(difference, 3) / share[..., None], axis=-1)
    evidence = jnp.minimum(color_error / color_tolerance, 3) + jnp.minimum(jnp.abs(log_ratio) / depth_tolerance, 3)
    contradicts = covered & (evidence > 2)
    votes = box_mean(contradicts.astype(frames.dtype), window)
    return votes > 0.5 * jnp.maximum(box_mean(covered.astype(frames.dtype), window), 1.0 / window**2)


def depth_edges(depth: Float[Array, "t h w"], tolerance: float) -> Bool[Array, "t h w"]:
    """Pixels on a jump of depth.

    Inverse depth of a plane is linear in the image, however slanted the plane: its second difference, relative to
    itself, is zero on surfaces and large on both sides of a jump.
    """
    inverse = 1 / depth
    padded = jnp.pad(inverse, ((0, 0), (1, 1), (1, 1)), mode="reflect", reflect_type="odd")
    vertical = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] - 2 * inverse
    horizontal = padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - 2 * inverse
    return jnp.maximum(jnp.abs(vertical), jnp.abs(horizontal)) > tolerance * inverse


def blocks_views(
    positions: Float[Array, "n 3"], cameras: Cameras, depth: Float[Array, "v h w"], tolerance: float
) -> Bool[Array, " n"]:
    """Which points would stand before what earlier views saw: the space up to there is known to be free.

    Args:
        cameras: Cameras[v] of the earlier views.
        depth: z-depth of what they see; 0 = unknown.
        tolerance: share of that depth by which a point has to be nearer.
    """
    z, pixel, inside = _nearest_pixels(positions, cameras, *depth.shape[1:])
    seen = jnp.take_along_axis(depth.reshape(len(depth), -1), pixel, axis=1)
    return (inside & (seen > 0) & (z < (1 - tolerance) * seen)).any(axis=0)


def seen_through(
    positions: Float[Array, "n 3"],
    colors: Float[Array, "n 3"],
    cameras: Cameras,
    depth: Float[Array, "k h w"],
    static: Bool[Array, "k h w"],
    frames: Float[Array, "k h w 3"],
    *,
    depth_tolerance: float,
    color_tolerance: float,
) -> Int[Array, " n"]:
    """In how many of k views each point is contradicted: a static surface stands behind it, in another colour.

    Args:
        cameras, depth, static, frames: of the views; colours in [0, 1].
        depth_tolerance: share of the surface's depth by which the point has to be nearer.
        color_tolerance: RGB distance; it keeps an error of depth alone from removing what is there.
    """

    def one_view(view):
        camera, depth, static, frame = view
        z, pixel, inside = _nearest_pixels(positions, camera, *depth.shape)
        nearer = z < (1 - depth_tolerance) * depth.ravel()[pixel]
        differs = jnp.linalg.norm(frame.reshape(-1, 3)[pixel] - colors, axis=-1) > color_tolerance
        return inside & static.ravel()[pixel] & nearer & differs

    return jax.lax.map(one_view, (cameras, depth, static, frames)).sum(axis=0)


def _nearest_pixels(
    positions: Float[Array, "n 3"], cameras: Cameras, height: int, width: int
) -> tuple[Float[Array, "*v n"], Int[Array, "*v n"], Bool[Array, "*v n"]]:
    """z-depth of points in views, the number of the pixel that each falls on, and whether it does."""
    pixels, z = cameras.project(positions, height, width)
    column, row = jnp.round(pixels[..., 0]).astype(jnp.int32), jnp.round(pixels[..., 1]).astype(jnp.int32)
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return z, jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1), inside


def view_agreement(
    depth: Float[Array, "t h w"],
    valid: Bool[Array, "t h w"],
    cameras: Cameras,
    offsets: Sequence[int],
    tolerance: float,
) -> tuple[Int[Array, "t h w"], Int[Array, "t h w"]]:
    """In how many other views of the clip each pixel is confirmed, and in how many it could have been.

    A pixel is warped into the views `offsets` frames away (mirrored at the ends of the clip). It is inside when it
    lands on the image and one of the four pixels around is valid; it is confirmed when the depth of one of the four is
    within `tolerance`, relatively. (The filter of DROID-SLAM, arXiv 2108.10869, with a relative threshold.)

    Returns:
        (agreements, inside), both [t, h, w], at most len(offsets).
    """
    num_frames, height, width = depth.shape
    points = cameras.unproject(depth).reshape(num_frames, -1, 3)

    def one_pair(points, other):
        uv, z = cameras[other].project(points, height, width)
        corner = jnp.floor(uv).astype(jnp.int32)
        agrees = lands = jnp.zeros(z.shape, bool)
        for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
            u, v = (corner + jnp.array(step)).T
            on_image = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (z > 0)
            u, v = jnp.clip(u, 0, width - 1), jnp.clip(v, 0, height - 1)
            usable = on_image & valid[other, v, u]
            lands |= usable
            agrees |= usable & (jnp.abs(depth[other, v, u] - z) < tolerance * z)
        return agrees, lands

    agreements = inside = jnp.zeros((num_frames, height * width), jnp.int32)
    frames = jnp.arange(num_frames)
    for offset in offsets:
        other = frames + offset
        other = jnp.where((other < 0) | (other >= num_frames), frames - offset, other)
        exists = (other >= 0) & (other < num_frames)
        agrees, lands = jax.vmap(one_pair)(points, jnp.clip(other, 0, num_frames - 1))
        agreements += agrees & exists[:, None]
        inside += lands & exists[:, None]
    return agreements.reshape(depth.shape), inside.reshape(depth.shape)


def box_mean(images: Float[Array, "t h w *c"], size: int) -> Float[Array, "t h w *c"]:
    """Means over squares of `size` x `size` pixels; what lies beyond the border counts as 0."""
    window = (1, size, size, *(1 for _ in images.shape[3:]))
    return jax.lax.reduce_window(images, 0.0, jax.lax.add, window, (1,) * images.ndim, "SAME") / size**2
