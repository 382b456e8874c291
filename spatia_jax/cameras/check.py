"""What to tell a user about a camera path before any compute is spent: does it leave the known scene, or run into it?

Both answers come from the points of the map alone. Points are projected into a coarse grid of cells over each view: a
cell that no point reaches is unknown. Clearance is the distance from the way between two frames to the points around.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError

_ROWS = 16
_POINTS_OF_A_SURFACE = 3  # fewer points in the way are stray ones


@dataclass(frozen=True)
class PathReport:
    """What a path does to the known scene.

    Attributes:
        unknown: [v] share of each view (0..1) in which the map has no point.
        clearance: [v] distance (metres or scene units) from the camera to the map, on its way to the next view.
        warnings: one sentence each, with frame numbers; empty if all is well.
    """

    unknown: np.ndarray
    clearance: np.ndarray
    warnings: tuple[str, ...]


def check_path(
    cameras: Cameras,
    points: Float[Array | np.ndarray, "n 3"],
    valid: Bool[Array | np.ndarray, " n"] | None = None,
    *,
    max_unknown: float = 0.6,
    min_clearance: float | None = None,
) -> PathReport:
    """Check a path [v] against the points of a map.

    Args:
        points: world points, those of a map or of the unprojected depth of a photo.
        valid: which of them count.
        max_unknown: share of a view that may be unknown without a warning.
        min_clearance: how close the camera may come to points, in scene units; by default 3 % of the median depth of
            the points that the first view sees.

    Raises: InputError if no point counts, or the cameras are not a path.
    """
    if len(cameras.shape) != 1 or not len(cameras):
        raise InputError(f"cameras of shape {cameras.shape}, expected a path of at least one view")
    known = np.asarray(points, np.float32)
    known = known[np.isfinite(known).all(axis=-1) if valid is None else np.asarray(valid)]
    if not len(known):
        raise InputError("the map holds no points, expected some to check the camera path against")
    poses, intrinsics = np.asarray(cameras.cam_from_world), np.asarray(cameras.intrinsics)
    if min_clearance is None:
        depth = known @ poses[0, 2, :3] + poses[0, 2, 3]
        min_clearance = 0.03 * float(np.median(depth[depth > 0])) if (depth > 0).any() else 0.0
    centers = np.asarray(cameras.centers)
    destinations = np.concatenate([centers[1:], centers[-1:]])
    unknown = np.array([_unknown_share(known, pose, k) for pose, k in zip(poses, intrinsics, strict=True)])
    clearance = np.array([_clearance(known, a, b) for a, b in zip(centers, destinations, strict=True)])
    warnings = []
    for first, last in _runs(unknown > max_unknown):
        worst = first + int(np.argmax(unknown[first : last + 1]))
        warnings.append(
            f"{_frames(first, last)}: up to {unknown[worst]:.0%} of the view is unknown to the map (frame {worst}; "
            f"{max_unknown:.0%} is fine), so the model has to invent it; turn or move less, or come back earlier"
        )
    for first, last in _runs(clearance < min_clearance):
        worst = first + int(np.argmin(clearance[first : last + 1]))
        warnings.append(
            f"{_frames(first, last)}: the camera passes {clearance[worst]:.3g} from the map (frame {worst}; "
            f"{min_clearance:.3g} is fine), perhaps through a surface; move less far"
        )
    return PathReport(unknown, clearance, tuple(warnings))


def _unknown_share(points: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> float:
    """Share of the cells of a view that no point falls into; cells are square for square pixels."""
    columns = max(1, round(_ROWS * float(intrinsics[1] / intrinsics[0])))
    x, y, z = (points @ pose[:, :3].T + pose[:, 3]).T
    in_front = z > 0
    with np.errstate(over="ignore"):
        u = (intrinsics[0] * x[in_front] / z[in_front] + intrinsics[2]) * columns
        v = (intrinsics[1] * y[in_front] / z[in_front] + intrinsics[3]) * _ROWS
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < _ROWS)
    cells = v[inside].astype(np.int32) * columns + u[inside].astype(np.int32)
    return 1 - np.count_nonzero(np.bincount(cells, minlength=_ROWS * columns)) / (_ROWS * columns)


def _clearance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Distance from the straight way start..end to the nearest points that are more than stray."""
    way = end - start
    along = np.clip((points - start) @ way / max(float(way @ way), 1e-12), 0, 1)
    offset = points - start - along[:, None] * way
    k = min(_POINTS_OF_A_SURFACE, len(points)) - 1
    return float(np.sqrt(np.partition(np.einsum("ni,ni->n", offset, offset), k)[k]))


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last index of each stretch of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return ((int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True))


def _frames(first: int, last: int) -> str:
    return f"frame {first}" if first == last else f"frames {first}-{last}"
