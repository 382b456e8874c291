"""The peer of benchmarks/splat.py: the point renderer as a competent user writes it in numba, on all cores.

Same projection, same discs, same K nearest by (depth, index), same blend. Strips of rows are shared out over threads;
each keeps a sorted list per pixel and inserts the points in their order. The gradients are summed per thread and then
over threads.
"""

from __future__ import annotations

import numba as nb
import numpy as np

_STRIPS = 16
_fast = nb.njit(parallel=True, error_model="numpy")


@_fast
def project(points, camera, height, width):
    """NDC [n, 3] of world points; camera: [16], the pose row by row, then fx fy cx cy in pixels."""
    ndc = np.empty_like(points)
    half = np.float32(min(height, width)) / np.float32(2)
    for p in nb.prange(points.shape[0]):
        x, y, z = points[p]
        u = camera[0] * x + camera[1] * y + camera[2] * z + camera[3]
        v = camera[4] * x + camera[5] * y + camera[6] * z + camera[7]
        w = camera[8] * x + camera[9] * y + camera[10] * z + camera[11]
        ndc[p, 0] = -(camera[12] * u / w + camera[14] - np.float32(width) / np.float32(2)) / half
        ndc[p, 1] = -(camera[13] * v / w + camera[15] - np.float32(height) / np.float32(2)) / half
        ndc[p, 2] = w
    return ndc


@nb.njit(error_model="numpy")
def _strip(ndc, x, y, radius, first, last, index, depth, distance2):
    """Inserts all points into the lists of the rows first..last-1."""
    height, width, k = index.shape
    half, radius2 = np.float32(min(height, width)) / np.float32(2), radius * radius
    for p in range(ndc.shape[0]):
        px, py, z = ndc[p]
        if not z >= 0:
            continue
        u = np.float32(width - 1) / np.float32(2) - px * half
        v = np.float32(height - 1) / np.float32(2) - py * half
        reach = radius * half + np.float32(0.02)
        if not (v + reach >= first and v - reach < last and u + reach >= 0 and u - reach < width):
            continue
        for r in range(max(first, int(np.ceil(v - reach))), min(last - 1, int(np.floor(v + reach))) + 1):
            dy2 = (py - y[r]) * (py - y[r])
            for c in range(max(0, int(np.ceil(u - reach))), min(width - 1, int(np.floor(u + reach))) + 1):
                if index[r, c, k - 1] >= 0 and depth[r, c, k - 1] <= z:
                    continue  # points come in the order of their index, so an equal depth is behind
                d2 = (px - x[c]) * (px - x[c]) + dy2
                if d2 < radius2:
                    slot = k - 1
                    while slot > 0 and (index[r, c, slot - 1] < 0 or depth[r, c, slot - 1] > z):
                        index[r, c, slot] = index[r, c, slot - 1]
                        depth[r, c, slot] = depth[r, c, slot - 1]
                        distance2[r, c, slot] = distance2[r, c, slot - 1]
                        slot -= 1
                    index[r, c, slot], depth[r, c, slot], distance2[r, c, slot] = p, z, d2


@_fast
def rasterize(ndc, x, y, radius, k):
    """Index, depth and squared distance [h, w, k] of the nearest discs; -1 where there are fewer."""
    height, width = y.shape[0], x.shape[0]
    index = np.full((height, width, k), -1, np.int32)
    depth, distance2 = np.full((height, width, k), -1, np.float32), np.full((height, width, k), -1, np.float32)
    rows = -(-height // _STRIPS)
    for strip in nb.prange(_STRIPS):
        _strip(ndc, x, y, radius, strip * rows, min(height, (strip + 1) * rows), index, depth, distance2)
    return index, depth, distance2


@_fast
def composite(index, distance2, colors, radius):
    """Blended colours [h, w, c] and coverage [h, w]."""
    height, width, k = index.shape
    image, coverage = np.zeros((height, width, colors.shape[1]), np.float32), np.zeros((height, width), np.float32)
    radius2 = radius * radius
    for r in nb.prange(height):
        for c in range(width):
            passed = np.float32(1)
            for slot in range(k):
                p = index[r, c, slot]
                if p < 0:
                    break
                alpha = np.float32(1) - distance2[r, c, slot] / radius2
                for channel in range(colors.shape[1]):
                    image[r, c, channel] += passed * alpha * colors[p, channel]
                passed *= np.float32(1) - alpha
            coverage[r, c] = np.float32(1) - passed
    return image, coverage


def render(points, colors, camera, x, y, radius, k):
    """Colours, coverage, and nearest depth (0 in holes) of one view."""
    ndc = project(points, camera, len(y), len(x))
    index, depth, distance2 = rasterize(ndc, x, y, radius, k)
    image, coverage = composite(index, distance2, colors, radius)
    return image, coverage, np.maximum(depth[..., 0], 0)


@_fast
def _pull(index, distance2, ndc, colors, x, y, radius, to_image, to_coverage):
    """Gradients of ndc x, y and colours [threads, n, 2 + c], to be summed over threads."""
    height, width, k = index.shape
    radius2, threads = radius * radius, nb.get_num_threads()
    sums = np.zeros((threads, ndc.shape[0], 2 + colors.shape[1]), np.float32)
    for thread in nb.prange(threads):
        mine, passed = sums[thread], np.empty(k, np.float32)
        for r in range(thread, height, threads):
            for c in range(width):
                through, used = np.float32(1), 0
                while used < k and index[r, c, used] >= 0:
                    passed[used] = through
                    through *= distance2[r, c, used] / radius2
                    used += 1
                behind = np.float32(0)
                for slot in range(used - 1, -1, -1):
                    p, alpha = index[r, c, slot], np.float32(1) - distance2[r, c, slot] / radius2
                    value = to_coverage[r, c]
                    for channel in range(colors.shape[1]):
                        value += to_image[r, c, channel] * colors[p, channel]
                        mine[p, 2 + channel] += alpha * passed[slot] * to_image[r, c, channel]
                    to_distance2 = -passed[slot] * (value - behind) / radius2
                    mine[p, 0] += 2 * to_distance2 * (ndc[p, 0] - x[c])
                    mine[p, 1] += 2 * to_distance2 * (ndc[p, 1] - y[r])
                    behind = alpha * value + (1 - alpha) * behind
    return sums


@_fast
def _through_projection(points, camera, sums, height, width):
    """Gradients of points [n, 3], colours [n, c], and of the pose [threads, 12], to be summed over threads."""
    n, channels, threads = points.shape[0], sums.shape[2] - 2, nb.get_num_threads()
    to_points, to_colors = np.empty((n, 3), np.float32), np.empty((n, channels), np.float32)
    to_pose = np.zeros((threads, 12), np.float64)
    half = np.float32(min(height, width)) / np.float32(2)
    for thread in nb.prange(threads):
        for p in range(thread * n // threads, (thread + 1) * n // threads):
            gx = gy = np.float32(0)
            to_colors[p] = 0
            for t in range(sums.shape[0]):
                gx, gy = gx + sums[t, p, 0], gy + sums[t, p, 1]
                for channel in range(channels):
                    to_colors[p, channel] += sums[t, p, 2 + channel]
            x, y, z = points[p]
            to_points[p] = 0
            if gx == 0 and gy == 0:
                continue
            u = camera[0] * x + camera[1] * y + camera[2] * z + camera[3]
            v = camera[4] * x + camera[5] * y + camera[6] * z + camera[7]
            w = camera[8] * x + camera[9] * y + camera[10] * z + camera[11]
            to_view = (-gx * camera[12] / (half * w), -gy * camera[13] / (half * w),
                       (gx * camera[12] * u + gy * camera[13] * v) / (half * w * w))  # fmt: skip
            for i in range(3):
                for j in range(3):
                    to_points[p, j] += to_view[i] * camera[4 * i + j]
                    to_pose[thread, 4 * i + j] += to_view[i] * points[p, j]
                to_pose[thread, 4 * i + 3] += to_view[i]
    return to_points, to_colors, to_pose


def render_and_pull(points, colors, camera, x, y, radius, k, to_image, to_coverage):
    """Gradients of points, colours and pose [12] after a forward pass."""
    ndc = project(points, camera, len(y), len(x))
    index, _, distance2 = rasterize(ndc, x, y, radius, k)
    composite(index, distance2, colors, radius)
    sums = _pull(index, distance2, ndc, colors, x, y, radius, to_image, to_coverage)
    to_points, to_colors, to_pose = _through_projection(points, camera, sums, len(y), len(x))
    return to_points, to_colors, to_pose.sum(axis=0)
