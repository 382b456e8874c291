"""What is done with a tile once its pixels' lists are known: indices, a picture, or gradients."""

from __future__ import annotations

import numpy as np

from spatia_jax.splat.cpu.ffi import compiled
from spatia_jax.splat.cpu.tiles import SIZE

_ONE = np.float32(1)


@compiled
def write_indices(keys, points, lists, row0, column0, indices):
    """indices: [h, w, k] of the image, -1 where a list has ended."""
    _, full, slots = lists
    for r in range(min(SIZE, indices.shape[0] - row0)):
        for c in range(min(SIZE, indices.shape[1] - column0)):
            for k in range(slots.shape[1]):
                place = points[keys[slots[r * SIZE + c, k]] & np.uint64(0xFFFFFFFF)] if k < full[r * SIZE + c] else -1
                indices[row0 + r, column0 + c, k] = place


@compiled
def alpha_of(entry, x, y):
    """How much of what is behind it a disc hides at a pixel, and what 1 - alpha is over the squared radius."""
    dx, dy = entry[0] - x, entry[1] - y
    distance2 = dx * dx + dy * dy
    return _ONE - distance2 / entry[3], distance2


@compiled
def write_picture(seen, lists, centers_x, centers_y, row0, column0, color, coverage, depth):
    """color: [h, w, c], coverage and depth: [h, w] of the image."""
    _, full, slots = lists
    for r in range(min(SIZE, color.shape[0] - row0)):
        for c in range(min(SIZE, color.shape[1] - column0)):
            pixel, passed = r * SIZE + c, _ONE
            blend = color[row0 + r, column0 + c]
            blend[:] = 0
            for k in range(full[pixel]):
                entry = seen[slots[pixel, k]]
                alpha, _ = alpha_of(entry, centers_x[column0 + c], centers_y[row0 + r])
                weight = alpha * passed
                for i in range(blend.shape[0]):
                    blend[i] += weight * entry[4 + i]
                passed *= _ONE - alpha
            coverage[row0 + r, column0 + c] = _ONE - passed
            depth[row0 + r, column0 + c] = seen[slots[pixel, 0], 2] if full[pixel] > 0 else np.float32(0)


@compiled
def add_gradients(seen, lists, centers_x, centers_y, row0, column0, cotangents, passed, gradients):
    """Adds to gradients [entries, 4 + c] what a tile's pixels say about x, y, z, squared radius and features.

    A pixel is walked back to front. With A the blend of what lies behind a disc, weighed by the cotangent, and s the
    disc's own value, the blend so far is `alpha s + (1 - alpha) A`; no division by `1 - alpha` is needed.

    Args:
        cotangents: of color [h, w, c], coverage and depth [h, w].
        passed: [k], scratch.
    """
    _, full, slots = lists
    to_color, to_coverage, to_depth = cotangents
    for r in range(min(SIZE, to_coverage.shape[0] - row0)):
        for c in range(min(SIZE, to_coverage.shape[1] - column0)):
            pixel, x, y = r * SIZE + c, centers_x[column0 + c], centers_y[row0 + r]
            blend, through, behind = to_color[row0 + r, column0 + c], _ONE, np.float32(0)
            for k in range(full[pixel]):
                passed[k] = through
                through *= _ONE - alpha_of(seen[slots[pixel, k]], x, y)[0]
            if full[pixel] > 0:
                gradients[slots[pixel, 0], 2] += to_depth[row0 + r, column0 + c]
            for k in range(full[pixel] - 1, -1, -1):
                entry, gradient = seen[slots[pixel, k]], gradients[slots[pixel, k]]
                alpha, distance2 = alpha_of(entry, x, y)
                value = to_coverage[row0 + r, column0 + c]
                for i in range(blend.shape[0]):
                    value += blend[i] * entry[4 + i]
                    gradient[4 + i] += alpha * passed[k] * blend[i]
                to_alpha = passed[k] * (value - behind) / entry[3]
                gradient[0] -= np.float32(2) * to_alpha * (entry[0] - x)
                gradient[1] -= np.float32(2) * to_alpha * (entry[1] - y)
                gradient[3] += to_alpha * distance2 / entry[3]
                behind = alpha * value + (_ONE - alpha) * behind


@compiled
def collect_gradients(keys, gradients, collected):
    """Puts gradients, in the order of sorted keys, to the places of the tiles' lists."""
    for e in range(keys.shape[0]):
        collected[keys[e] & np.uint64(0xFFFFFFFF)] = gradients[e]
