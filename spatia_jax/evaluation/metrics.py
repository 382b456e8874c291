"""Image metrics on bytes. PSNR in dB against a peak of 255."""

from __future__ import annotations

import dm_pix
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8


def psnr(
    a: UInt8[np.ndarray, "*n 3"], b: UInt8[np.ndarray, "*n 3"], where: Bool[np.ndarray, "*n"] | None = None
) -> float:
    """PSNR of the pooled squared error over all pixels, or those of `where`; NaN when there are none."""
    squared = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(-1)
    chosen = squared if where is None else squared[where]
    if not chosen.size:
        return float("nan")
    return float(10 * np.log10(255.0**2 / max(chosen.mean(), 1e-12)))


def ssim(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    """Structural similarity as dm-pix computes it: 11 x 11 Gaussian window of sigma 1.5, mean over colour channels."""
    return float(dm_pix.ssim(jnp.asarray(a, jnp.float32) / 255, jnp.asarray(b, jnp.float32) / 255))
