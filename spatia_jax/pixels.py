"""Pictures as bytes at the door, and as floats inside."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_unit(frames: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Bytes to [0, 1]."""
    return frames.astype(jnp.float32) / 255.0


def to_signed(frames: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Bytes to [-1, 1]."""
    return frames.astype(jnp.float32) * (2.0 / 255.0) - 1.0


def to_bytes(video: Float[Array, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
    """[-1, 1] to bytes, rounded."""
    return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)
