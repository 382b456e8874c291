"""What probably lies in the holes of a projection: two small U-Nets, fitted by least squares.

Ours; the released model has no such part. A narrow transformer with large tokens learns in thousands of steps that
walls go on and floors lie below; a pyramid of convolutions over the picture itself learns it in hundreds. One network
looks at the panorama of all that is known around the camera, so that a view that has turned away still knows the
colours of wall and floor; the other looks at the view. Their answer is the mean of what could be there, hence smooth: a
start for the generator, not a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.unet import GROUPS, UNet, blocks, positions, unblocks


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
        if self.scale < 1 or not self.widths or not self.panorama_widths or any(width % GROUPS for width in widths):
            raise InputError(
                f"inpainter.scale is {self.scale}, inpainter.widths {self.widths} and inpainter.panorama_widths "
                f"{self.panorama_widths}; scale must be at least 1, and widths multiples of {GROUPS}"
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


_GUESS = 12  # channels that the panorama's network hands on; the first three are its guess of the colour


class Inpainter(nnx.Module):
    """Corrects a smoothly filled picture."""

    def __init__(self, config: InpainterConfig, *, rngs: nnx.Rngs):
        self.around = UNet(4 * (5 + 1), 4 * _GUESS, config.panorama_widths, wraps=True, rngs=rngs)
        self.view = UNet(4 * (9 + _GUESS), 4 * 3, config.widths, rngs=rngs)

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
        rows = positions(panorama)[..., :1]
        around = unblocks(self.around.through(blocks(jnp.concatenate([2 * panorama - 1, rows], axis=-1))))
        guess = jax.vmap(_look_up)(around, places)
        shown = [2 * filled - 1, 2 * color - known, known, positions(filled), guess]
        return unblocks(self.view.through(blocks(jnp.concatenate(shown, axis=-1)))), 0.5 + 0.5 * guess[..., :3]


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
