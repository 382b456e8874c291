"""Which pixels of a keyframe belong to things that move: a small U-Net over the picture and what contradicts it.

Ours; the released model has no such part. What it is shown beside the picture are the differences that no static scene
explains (`mapper/motion_cues.py`). It learns which of them a moving thing makes, and which a shadow or the rim of a
table, and where the thing ends whose inside looks like what is behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.unet import GROUPS, UNet, blocks, positions, unblocks

CELL = 4  # pixels, side of the squares in which the network thinks; it answers for each pixel of them
NUM_DIFFERENCES, NUM_SCALARS = 5, 13  # of the cues
_GAIN = 3.0  # colour differences are small beside the other inputs


@dataclass(frozen=True)
class MotionNetworkConfig:
    """Sizes of the motion network.

    Attributes:
        widths: channels of each level, finest first; the first has cells of 4 x 4 pixels, each further one halves
            height and width. Multiples of 8.
        threshold: probability from which on a pixel is taken for moving.
    """

    widths: tuple[int, ...] = (24, 32, 48)
    threshold: float = 0.5

    def __post_init__(self):
        if not self.widths or any(width < 1 or width % GROUPS for width in self.widths):
            raise InputError(f"motion.widths are {self.widths}; they must be multiples of {GROUPS}")
        if not 0 < self.threshold < 1:
            raise InputError(f"motion.threshold is {self.threshold}; it is a probability, between 0 and 1")

    @property
    def multiple(self) -> int:
        """Height and width of the frames are multiples of this."""
        return CELL * 2 ** (len(self.widths) - 1)


class MotionNetwork(UNet):
    """Log odds that a pixel moves."""

    def __init__(self, config: MotionNetworkConfig, *, rngs: nnx.Rngs):
        cues = 4 * (3 * NUM_DIFFERENCES + NUM_SCALARS)
        super().__init__(3 * CELL**2 + cues + 2, CELL**2, config.widths, rngs=rngs)

    def __call__(
        self,
        frames: Float[Array, "b h w 3"],
        differences: Float[Array, "b y x d 3"],
        scalars: Float[Array, "b y x s"],
    ) -> Float[Array, "b h w"]:
        """
        Args:
            frames: colours in [0, 1].
            differences, scalars: the cues, at half the height and width.
        """
        colors = _GAIN * differences.reshape(*differences.shape[:3], -1)
        cells = jnp.concatenate([blocks(blocks(2 * frames - 1)), blocks(colors), blocks(scalars)], axis=-1)
        cells = jnp.concatenate([cells, positions(cells)], axis=-1)
        return unblocks(unblocks(self.through(cells)))[..., 0]
