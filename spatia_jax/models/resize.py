"""Image resizing as two small matrix products, with the sampling rules of the networks that we load.

`jax.image.resize` has no corner-aligned grid and another cubic kernel (a = -0.5), so released weights would see
slightly different features through it. A product with a constant [out, in] matrix is exact, has a cheap transpose,
and is what TPUs like best.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Method = Literal["linear", "linear_corners", "cubic"]
_CUBIC_A = -0.75  # the cubic kernel of OpenCV and of torch.nn.functional.interpolate


def resize(
    images: Float[Array, "b h w c"], height: int, width: int, method: Method = "linear"
) -> Float[Array, "b y x c"]:
    """Resizes without antialiasing.

    Args:
        images: [b, h, w, c].
        height, width: new size, pixels.
        method: "linear" and "cubic" keep the outer *edges* of the border pixels in place (half-pixel centres);
            "linear_corners" keeps the *centres* of the corner pixels in place (torch's `align_corners=True`).

    Returns:
        [b, height, width, c].
    """
    _, old_height, old_width, _ = images.shape
    if width != old_width:
        images = jnp.einsum("xw,bhwc->bhxc", _matrix(old_width, width, method), images)
    if height != old_height:
        images = jnp.einsum("yh,bhwc->bywc", _matrix(old_height, height, method), images)
    return images


@functools.lru_cache(maxsize=256)
def _matrix(old: int, new: int, method: Method) -> np.ndarray:
    """[new, old] interpolation weights; every row sums to one, and samples beyond the border repeat it."""
    index = np.arange(new)
    corners, edges = index * ((old - 1) / max(new - 1, 1)), (index + 0.5) * (old / new) - 0.5
    source = corners if method == "linear_corners" else edges
    taps = np.arange(-1, 3)
    floor = np.floor(source).astype(int)
    distance = np.abs(source[:, None] - (floor[:, None] + taps))
    weights = _cubic(distance) if method == "cubic" else np.maximum(1 - distance, 0)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (index[:, None], np.clip(floor[:, None] + taps, 0, old - 1)), weights)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
