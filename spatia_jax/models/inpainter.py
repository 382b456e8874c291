"""What probably lies in the holes of a projection: two small U-Nets, fitted by least squares.

Ours; the released model has no such part. A narrow transformer with large tokens learns in thousands of steps that
walls go on and floors lie below; a pyramid of convolutions over the picture itself learns it in hundreds. One network
looks at the panorama of all that is known around the camera, so that a view that has turned away still knows the
colours of wall and floor; the other looks at the view. Their answer is the mean of what could be there, hence smooth: a
start for the generator, not a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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
        panorama: rows and columns of the panorama, cells of square angles; the columns go all around.
        panorama_widths: channels of its levels.
    """

    scale: int = 4
    widths: tuple[int, ...] = (64, 96, 160)
    panorama: tuple[int, int] = (32, 112)
    panorama_widths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self):
        widths = self.widths + self.panorama_widths
        if self.scale < 1 or not self.widths or not self.panorama_widths or any(width % _GROUPS for width in widths):
            raise InputError(
                f"inpainter.scale is {self.scale}, inpainter.widths {self.widths} and inpainter.panorama_widths "
                f"{self.panorama_widths}; scale must be at least 1, and widths multiples of {_GROUPS}"
            )
        halved = 2 ** len(self.panorama_widths)
        if any(side < halved or side % halved for side in self.panorama):
            raise InputError(
                f"inpainter.panorama is {self.panorama}; with {len(self.panorama_widths)} levels both must be "
                f"multiples of {halved}"
            )

    @property
    def multiple(self) -> int:
        """Height and width of the pictures are multiples of this."""
        return self.scale * 2 ** len(self.widths)


_GROUPS = 8
_GUESS = 12  # channels that the panorama's network hands on; the first three are its guess of the colour


class Inpainter(nnx.Module):
    """Corrects a smoothly filled picture."""

    def __init__(self, config: InpainterConfig, *, rngs: nnx.Rngs):
        self.around = UNet(5 + 1, config.panorama_widths, _GUESS, wraps=True, rngs=rngs)
        self.view = UNet(9 + _GUESS, config.widths, 3, wraps=False, rngs=rngs)

    def __call__(
        self,
        filled: Float[Array, "b h w 3"],
        color: Float[Array, "b h w 3"],
        coverage: Float[Array, "b h w"],
        panorama: Float[Array, "b r c 5"],
        places: Float[Array, "b h w 2"],
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
        """What to add to `filled`, and what the panorama alone says of the colour of every pixel.

        Args:
            filled, color: pictures in [0, 1], `color` premultiplied by coverage.
            panorama: `memory.panoramas`; places: row and column of it in which each pixel looks.
        """
        known = coverage[..., None]
        rows = _positions(panorama)[..., :1]
        around = self.around(jnp.concatenate([2 * panorama - 1, rows], axis=-1))
        guess = jax.vmap(_look_up)(around, places)
        shown = [2 * filled - 1, 2 * color - known, known, _positions(filled), guess]
        return self.view(jnp.concatenate(shown, axis=-1)), 0.5 + 0.5 * guess[..., :3]


class UNet(nnx.Module):
    """A pyramid that ends where it began; the first level, too, works at half the size."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int, *, wraps: bool, rngs: nnx.Rngs):
        steps = list(pairwise(widths))
        self.enter = nnx.Linear(4 * inputs, widths[0], rngs=rngs)
        self.down = nnx.data([Residual(width, wraps=wraps, rngs=rngs) for width in widths[:-1]])
        self.shrink = nnx.data([nnx.Linear(4 * fine, coarse, rngs=rngs) for fine, coarse in steps])
        self.before, self.after = (Residual(widths[-1], wraps=wraps, rngs=rngs) for _ in range(2))
        self.attention = SpatialAttention(widths[-1], rngs=rngs)
        self.enlarge = nnx.data([nnx.Linear(coarse, 4 * fine, rngs=rngs) for fine, coarse in steps])
        self.up = nnx.data([Residual(width, wraps=wraps, rngs=rngs) for width in widths[:-1]])
        self.leave = nnx.Linear(widths[0], 4 * outputs, kernel_init=_ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        x = self.enter(_blocks(x))
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

    def __init__(self, width: int, *, wraps: bool, rngs: nnx.Rngs):
        self.wraps = wraps
        self.norm = nnx.GroupNorm(width, num_groups=_GROUPS, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), padding="VALID", kernel_init=_ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        hidden = self.conv1(self._extend(jax.nn.silu(self.norm(x))))
        return x + self.conv2(self._extend(jax.nn.silu(hidden)))

    def _extend(self, x: Array) -> Array:
        """One more pixel on each side, repeated, since zeros would look like an edge; or from the other end."""
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
        return jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="wrap" if self.wraps else "edge")


def _look_up(panorama: Float[Array, "r c d"], places: Float[Array, "h w 2"]) -> Float[Array, "h w d"]:
    """Bilinear, around in columns; beyond the first and last row these repeat."""
    rows, columns = panorama.shape[:2]
    row, column = jnp.clip(places[..., 0], 0, rows - 1), places[..., 1]
    above, left = jnp.clip(jnp.floor(row), 0, rows - 2), jnp.floor(column)
    down, across = (row - above)[..., None], (column - left)[..., None]
    above, left = above.astype(jnp.int32), left.astype(jnp.int32) % columns
    right = (left + 1) % columns
    upper = (1 - across) * panorama[above, left] + across * panorama[above, right]
    lower = (1 - across) * panorama[above + 1, left] + across * panorama[above + 1, right]
    return (1 - down) * upper + down * lower


def _positions(images: Float[Array, "b h w c"]) -> Float[Array, "b h w 2"]:
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
