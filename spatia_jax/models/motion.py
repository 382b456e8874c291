"""Which pixels of a keyframe belong to things that move: a small U-Net over the picture and what contradicts it.

Ours; the released model has no such part. What it is shown beside the picture are the differences that no static scene
explains (`mapper/motion_cues.py`). It learns which of them a moving thing makes, and which a shadow or the rim of a
table, and where the thing ends whose inside looks like what is behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatia_jax.errors import InputError
from spatia_jax.models.unet import GROUPS, UNet, blocks, positions, unblocks

CELL = 2  # pixels, side of the squares in which the network thinks; it answers for each pixel of them
HALVING = 2  # it sees keyframes at half their resolution
NUM_DIFFERENCES, NUM_SCALARS = 5, 13  # of the cues
_GAIN = 3.0  # colour differences are small beside the other inputs


@dataclass(frozen=True)
class MotionNetworkConfig:
    """Sizes of the motion network.

    Attributes:
        widths: channels of each level, finest first; the first has cells of 4 x 4 pixels of a keyframe, each further
            one halves height and width. Multiples of 8.
        seen: numbers that a cell is turned into before its neighbours are asked.
        threshold: probability from which on a pixel is taken for moving.
    """

    widths: tuple[int, ...] = (16, 40, 56)
    seen: int = 48
    threshold: float = 0.5

    def __post_init__(self):
        if not self.widths or any(width < 1 or width % GROUPS for width in self.widths):
            raise InputError(f"motion.widths are {self.widths}; they must be multiples of {GROUPS}")
        if self.seen < 1:
            raise InputError(f"motion.seen is {self.seen}; it must be at least 1")
        if not 0 < self.threshold < 1:
            raise InputError(f"motion.threshold is {self.threshold}; it is a probability, between 0 and 1")

    @property
    def multiple(self) -> int:
        """Height and width of the frames are multiples of this."""
        return HALVING * CELL * 2 ** (len(self.widths) - 1)


class MotionNetwork(nnx.Module):
    """Log odds that a pixel moves.

    Each cell is looked at by itself first; what was seen there goes past the U-Net, too, since it knows the outlines.
    """

    def __init__(self, config: MotionNetworkConfig, *, rngs: nnx.Rngs):
        cues, width = CELL**2 * (4 * NUM_DIFFERENCES + NUM_SCALARS), config.widths[0]
        self.look = nnx.Linear(3 * CELL**2 + cues + 2, config.seen, rngs=rngs)
        self.think = UNet(config.seen, width, config.widths, rngs=rngs)
        self.compare = nnx.Linear(config.seen + width, config.seen, rngs=rngs)
        self.decide = nnx.Linear(config.seen, CELL**2, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self,
        frames: Float[Array, "b y x 3"],
        differences: Float[Array, "b y x d 3"],
        scalars: Float[Array, "b y x s"],
    ) -> Float[Array, "b y x"]:
        """Args: as of `motion_cues.Cues`; all of it at half the resolution of the keyframes, and so is the answer."""
        sizes = jnp.abs(differences).max(-1)  # whichever way colours differ
        colors = _GAIN * jnp.concatenate([differences.reshape(*sizes.shape[:3], -1), sizes], axis=-1)
        cells = jnp.concatenate([blocks(2 * frames - 1), blocks(colors), blocks(scalars)], axis=-1)
        seen = jax.nn.silu(self.look(jnp.concatenate([cells, positions(cells)], axis=-1)))
        thought = jnp.concatenate([seen, self.think.through(seen)], axis=-1)
        return unblocks(self.decide(jax.nn.silu(self.compare(thought))))[..., 0]
