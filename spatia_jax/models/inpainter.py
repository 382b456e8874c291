"""What probably lies in the holes of a projection: a small U-Net, fitted by least squares.

Ours; the released model has no such part. A narrow transformer with large tokens learns in thousands of steps that
walls go on and floors lie below; a pyramid of convolutions over the picture itself learns it in hundreds. Its answer is
the mean of what could be there, hence smooth: a start for the generator, not a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    scale: int = 4
    widths: tuple[int, ...] = (64, 96, 160)

    def __post_init__(self):
        if self.scale < 1 or not self.widths or any(width % GROUPS for width in self.widths):
            raise InputError(
                f"inpainter.scale is {self.scale} and inpainter.widths {self.widths}; scale must be at least 1, and "
                f"widths multiples of {GROUPS}"
            )

    @property
    def multiple(self) -> int:
        """Height and width of the pictures are multiples of this."""
        return self.scale * 2 ** len(self.widths)


class Inpainter(UNet):
    """Corrects a smoothly filled picture."""

    def __init__(self, config: InpainterConfig, *, rngs: nnx.Rngs):
        super().__init__(4 * 9, 4 * 3, config.widths, rngs=rngs)

    def __call__(
        self, filled: Float[Array, "b h w 3"], color: Float[Array, "b h w 3"], coverage: Float[Array, "b h w"]
    ) -> Float[Array, "b h w 3"]:
        """What to add to `filled`; all pictures in [0, 1], `color` premultiplied by coverage."""
        known = coverage[..., None]
        shown = jnp.concatenate([2 * filled - 1, 2 * color - known, known, positions(filled)], axis=-1)
        return unblocks(self.through(blocks(shown)))
