"""A small U-Net over pictures, and its layers: what the inpainter and the motion network have in common."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.models.autoencoder_layers import SpatialAttention

GROUPS = 8  # of the norms; widths are multiples of it


class UNet(nnx.Module):
    """From cells of pixels to cells of pixels; starts as zero.

    Args:
        inputs, outputs: channels of a cell.
        widths: channels of each level, finest first; each level but the first halves height and width.
        wraps: the last column lies beside the first one.
    """

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...], *, wraps: bool = False, rngs: nnx.Rngs):
        steps = list(itertools.pairwise(widths))
        self.enter = nnx.Linear(inputs, widths[0], rngs=rngs)
        self.down = nnx.data([Residual(width, wraps, rngs=rngs) for width in widths[:-1]])
        self.shrink = nnx.data([nnx.Linear(4 * fine, coarse, rngs=rngs) for fine, coarse in steps])
        self.before, self.after = (Residual(widths[-1], wraps, rngs=rngs) for _ in range(2))
        self.attention = SpatialAttention(widths[-1], rngs=rngs)
        self.enlarge = nnx.data([nnx.Linear(coarse, 4 * fine, rngs=rngs) for fine, coarse in steps])
        self.up = nnx.data([Residual(width, wraps, rngs=rngs) for width in widths[:-1]])
        self.leave = nnx.Linear(widths[0], outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def through(self, cells: Float[Array, "b p q i"]) -> Float[Array, "b p q o"]:
        """Down to the coarsest level, attention there, and up again."""
        x = self.enter(cells)
        passed = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            passed.append(level(x))
            x = shrink(blocks(passed[-1]))
        x = self.after(self.attention(self.before(x)[:, None])[:, 0])
        for level, enlarge, skip in reversed(list(zip(self.up, self.enlarge, passed, strict=True))):
            x = level(unblocks(enlarge(x)) + skip)
        return self.leave(x)


class Residual(nnx.Module):
    """norm, SiLU, conv, SiLU, conv beside the identity, which it starts as."""

    def __init__(self, width: int, wraps: bool, *, rngs: nnx.Rngs):
        self.wraps = wraps
        self.norm = nnx.GroupNorm(width, num_groups=GROUPS, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(
            width, width, (3, 3), padding="VALID", kernel_init=nnx.initializers.zeros, rngs=rngs
        )  # fmt: skip

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        hidden = self.conv1(self._extend(jax.nn.silu(self.norm(x))))
        return x + self.conv2(self._extend(jax.nn.silu(hidden)))

    def _extend(self, x: Array) -> Array:
        """One more pixel on each side, repeated, since zeros would look like an edge; or from the other end."""
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
        return jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="wrap" if self.wraps else "edge")


def positions(images: Float[Array, "b h w c"]) -> Float[Array, "b h w 2"]:
    """Row and column of each pixel, -1 to 1: floors are below."""
    b, h, w, _ = images.shape
    rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, h), jnp.linspace(-1, 1, w), indexing="ij")
    return jnp.broadcast_to(jnp.stack([rows, columns], axis=-1), (b, h, w, 2))


def blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
    """Squares of 2 x 2 pixels become channels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def unblocks(x: Float[Array, "b p q d"]) -> Float[Array, "b h w c"]:
    """Inverse of `blocks`."""
    b, p, q, d = x.shape
    return x.reshape(b, p, q, 2, 2, d // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * p, 2 * q, d // 4)
