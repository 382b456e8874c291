"""What probably lies in the holes of a projection: a small U-Net, fitted by least squares.

Ours; the released model has no such part. A narrow transformer with large tokens learns in thousands of steps that
walls go on and floors lie below; a pyramid of convolutions over the picture itself learns it in hundreds. Its answer is
the mean of what could be there, hence smooth: a start for the generator, not a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.autoencoder_layers import SpatialAttention

_ZEROS = nnx.initializers.zeros


@dataclass(frozen=True)
class InpainterConfig:
    """Sizes of the inpainter.

    Attributes:
        scale: it works on pictures shrunk by this factor; what it says is smooth.
        widths: channels of each level, finest first; each level, also the first, halves height and width. Multiples
            of 8.
    """

    scale: int = 4
    widths: tuple[int, ...] = (64, 96, 160)

    def __post_init__(self):
        if self.scale < 1 or not self.widths or any(width % _GROUPS for width in self.widths):
            raise InputError(
                f"inpainter.scale is {self.scale} and inpainter.widths {self.widths}; scale must be at least 1, and "
                f"widths multiples of {_GROUPS}"
            )

    @property
    def multiple(self) -> int:
        """Height and width of the pictures are multiples of this."""
        return self.scale * 2 ** len(self.widths)


_GROUPS = 8


class Inpainter(nnx.Module):
    """Corrects a smoothly filled picture."""

    def __init__(self, config: InpainterConfig, *, rngs: nnx.Rngs):
        widths, steps = config.widths, list(zip(config.widths, config.widths[1:], strict=False))
        self.enter = nnx.Linear(4 * 9, widths[0], rngs=rngs)
        self.down = nnx.data([Residual(width, rngs=rngs) for width in widths[:-1]])
        self.shrink = nnx.data([nnx.Linear(4 * fine, coarse, rngs=rngs) for fine, coarse in steps])
        self.before, self.after = Residual(widths[-1], rngs=rngs), Residual(widths[-1], rngs=rngs)
        self.attention = SpatialAttention(widths[-1], rngs=rngs)
        self.enlarge = nnx.data([nnx.Linear(coarse, 4 * fine, rngs=rngs) for fine, coarse in steps])
        self.up = nnx.data([Residual(width, rngs=rngs) for width in widths[:-1]])
        self.leave = nnx.Linear(widths[0], 4 * 3, kernel_init=_ZEROS, rngs=rngs)

    def __call__(
        self, filled: Float[Array, "b h w 3"], color: Float[Array, "b h w 3"], coverage: Float[Array, "b h w"]
    ) -> Float[Array, "b h w 3"]:
        """What to add to `filled`; all pictures in [0, 1], `color` premultiplied by coverage."""
        known = coverage[..., None]
        shown = jnp.concatenate([2 * filled - 1, 2 * color - known, known, _positions(filled)], axis=-1)
        x = self.enter(_blocks(shown))
        passed = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            passed.append(level(x))
            x = shrink(_blocks(passed[-1]))
        x = self.after(self.attention(self.before(x)[:, None])[:, 0])
        for level, enlarge, skip in reversed(list(zip(self.up, self.enlarge, passed, strict=True))):
            x = level(_unblocks(enlarge(x)) + skip)
        return _unblocks(self.leave(x))


class Residual(nnx.Module):
    """norm, SiLU, conv, SiLU, conv beside the identity, which it starts as."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.GroupNorm(width, num_groups=_GROUPS, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), padding="VALID", kernel_init=_ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        hidden = self.conv1(_extend(jax.nn.silu(self.norm(x))))
        return x + self.conv2(_extend(jax.nn.silu(hidden)))


def _extend(x: Array) -> Array:
    """One more pixel on each side, repeated: zeros would look like an edge."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")


def _positions(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 2"]:
    """Row and column of each pixel, -1 to 1: floors are below."""
    b, h, w, _ = images.shape
    rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, h), jnp.linspace(-1, 1, w), indexing="ij")
    return jnp.broadcast_to(jnp.stack([rows, columns], axis=-1), (b, h, w, 2))


def _blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
    """Squares of 2 x 2 pixels become channels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def _unblocks(x: Float[Array, "b p q d"]) -> Float[Array, "b h w c"]:
    """Inverse of `_blocks`."""
    b, p, q, d = x.shape
    return x.reshape(b, p, q, 2, 2, d // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * p, 2 * q, d // 4)
