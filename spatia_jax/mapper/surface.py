"""The surface around each point of a mapped sequence: its normal, and the radius of the disc that stands for it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from spatia_jax.mapper.keyframes import KeyframeGraph
from spatia_jax.memory.point_map import PointMap


def point_surfaces(
    graph: KeyframeGraph, point_map: PointMap, points_per_cell: int
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Unit normals towards the camera, and radii, of all n slots, from the depth of the keyframe that brought a point.

    A disc has the area of its share of a cell. Slots without a point, and points whose keyframe is no longer held, have
    normal and radius 0.
    """
    positions, brought_by = np.asarray(point_map.positions), np.asarray(point_map.keyframes)
    normals, radii = np.zeros_like(positions), np.zeros(len(positions), np.float32)
    cameras, (_, rows, columns) = graph.variables.cameras(), graph.variables.inverse_depth.shape
    surface = np.asarray(cameras.unproject(1 / graph.variables.inverse_depth))
    down, right = np.gradient(surface, axis=(1, 2))
    inward = np.cross(right, down)  # its length is the area of a cell
    for slot, frame in enumerate(np.asarray(graph.frames)):
        mine = np.flatnonzero(brought_by == frame) if frame >= 0 else np.zeros(0, int)
        if not len(mine):
            continue
        pixels, _ = cameras[slot].project(positions[mine], rows, columns)
        column, row = np.rint(np.asarray(pixels)).astype(int).T
        found = inward[slot, np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)]
        area = np.linalg.norm(found, axis=1)
        normals[mine] = -found / np.maximum(area, 1e-12)[:, None]
        radii[mine] = np.sqrt(area / np.pi) / points_per_cell
    return normals, radii
