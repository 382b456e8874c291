"""Flow matching: the path, what a network may predict, and the training loss.

The path runs from data x0 (sigma 0) to noise e (sigma 1), its velocity is constant along the way:

    x_sigma = (1 - sigma) x0 + sigma e                                                                        (1)
    v       = dx / dsigma = e - x0                                                                            (2)
    x0      = x_sigma - sigma v,      v = (x_sigma - x0) / sigma                                              (3)

(The paper, section 3, writes the same path with time running from noise to data, so its u is our -v.)

sigma is drawn from a logit-normal and shifted towards noise (schedules.py, equation 1):

    sigma = shift(sigmoid(m + s z)),  z ~ N(0, 1)                                                             (4)

The loss is the mean squared error of v over the frames to generate. A network that outputs x0 is held to the same
loss, which by (3) is its own error over sigma:

    | v_hat - v |^2 = | x0_hat - x0 |^2 / max(sigma, floor)^2                                                 (5)
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatia_jax.diffusion.schedules import NUM_TRAIN_TIMESTEPS, shift_sigma
from spatia_jax.errors import InputError

_TIME, _NOISE, _AUGMENTATION = range(3)  # purposes folded into the key


@runtime_checkable
class Parametrization(Protocol):
    """What the numbers that a network outputs mean. sigma broadcasts against output."""

    def clean(self, output: Array, latents: Array, sigma: Array) -> Array:
        """The estimate of x0."""

    def velocity(self, output: Array, latents: Array, sigma: Array) -> Array:
        """The estimate of v."""

    def residual(self, output: Array, x0: Array, noise: Array, sigma: Array) -> Array:
        """The error in units of v; its square is the loss."""


@dataclasses.dataclass(frozen=True)
class Velocity:
    """The network outputs v (the released weights)."""

    def clean(self, output: Array, latents: Array, sigma: Array) -> Array:
        return latents - sigma * output

    def velocity(self, output: Array, latents: Array, sigma: Array) -> Array:
        return output

    def residual(self, output: Array, x0: Array, noise: Array, sigma: Array) -> Array:
        return output - (noise - x0)


@dataclasses.dataclass(frozen=True)
class Clean:
    """The network outputs x0 (the embedded tiny model).

    v contains the noise, which has as many dimensions as the patch has numbers. A network whose width is near that
    of a patch would have to carry all of it from input to output and has no room left for the picture; x0 lies near
    a low-dimensional manifold, which a narrow network can learn.

    Attributes:
        floor: sigma below which equation (5) gives no further weight, so that nearly clean inputs do not rule.
    """

    floor: float = 0.1

    def __post_init__(self):
        if not 0 < self.floor <= 1:
            raise InputError(f"Clean.floor is {self.floor}; it is a noise level and must lie in (0, 1]")

    def clean(self, output: Array, latents: Array, sigma: Array) -> Array:
        return output

    def velocity(self, output: Array, latents: Array, sigma: Array) -> Array:
        return (latents - output) / jnp.maximum(sigma, self.floor)

    def residual(self, output: Array, x0: Array, noise: Array, sigma: Array) -> Array:
        return (output - x0) / jnp.maximum(sigma, self.floor)


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """How noise is put on training clips.

    Attributes:
        parametrization: what the network outputs.
        shift: timestep shift of the training noise levels (5 in the released sampler).
        logit_mean, logit_std: of the logit-normal; the paper says logit-normal and no more.
        history_noise: history latents get noise of a level drawn from [0, history_noise] of 1000 (paper, suppl.).
    """

    parametrization: Velocity | Clean = Velocity()
    shift: float = 5.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    history_noise: float = 50.0

    def __post_init__(self):
        if self.shift <= 0 or self.logit_std < 0 or not 0 <= self.history_noise <= NUM_TRAIN_TIMESTEPS:
            raise InputError(
                f"FlowConfig(shift={self.shift}, logit_std={self.logit_std}, history_noise={self.history_noise}): "
                "needs shift > 0, logit_std >= 0 and 0 <= history_noise <= 1000"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoisyLatents:
    """A training input: new frames at one noise level per clip, all others clean (history: nearly).

    Attributes:
        latents: [b, f, p, q, c], what the network sees.
        noise: [b, f, p, q, c], e of equation (1).
        sigma: [b, f], the noise level in `latents`.
        timesteps: [b, f], what the network is told: 1000 sigma for new frames and 0 for given ones, as in sampling.
    """

    latents: Array
    noise: Array
    sigma: Array
    timesteps: Array


def interpolate(x0: Array, noise: Array, sigma: Array) -> Array:
    """Equation (1): the point of the path at noise level sigma (which broadcasts)."""
    return (1 - sigma) * x0 + sigma * noise


def sample_sigma(key: Array, shape: tuple[int, ...], config: FlowConfig) -> Array:
    """Noise levels for training by equation (4): float32 in (0, 1) of the given shape."""
    normal = jax.random.normal(key, shape)
    return shift_sigma(jax.nn.sigmoid(config.logit_mean + config.logit_std * normal), config.shift)


def add_noise(
    key: Array,
    x0: Float[Array, "b f p q c"],
    is_new: Bool[Array, "*b f"],
    is_history: Bool[Array, "*b f"],
    config: FlowConfig,
) -> NoisyLatents:
    """Make a training input out of clean latents.

    Args:
        key: PRNG key of this step.
        x0: clean latents of whole clips, references and history included.
        is_new: the frames to generate: they get noise of a level drawn for each clip.
        is_history: the frames of the preceding clip: they get the slight augmentation noise. Other frames stay clean.
        config: levels of both.
    """
    batch, num_frames = x0.shape[:2]
    noise = jax.random.normal(jax.random.fold_in(key, _NOISE), x0.shape)
    level = sample_sigma(jax.random.fold_in(key, _TIME), (batch, 1), config)
    slight = jax.random.uniform(jax.random.fold_in(key, _AUGMENTATION), (batch, 1)) * (
        config.history_noise / NUM_TRAIN_TIMESTEPS
    )
    new, history = (jnp.broadcast_to(mask, (batch, num_frames)) for mask in (is_new, is_history))
    sigma = jnp.where(new, level, jnp.where(history, slight, 0.0))
    timesteps = jnp.where(new, NUM_TRAIN_TIMESTEPS * level, 0.0)
    return NoisyLatents(interpolate(x0, noise, _per_frame(sigma)), noise, sigma, timesteps)


def flow_loss(
    output: Float[Array, "b f p q c"],
    x0: Float[Array, "b f p q c"],
    noisy: NoisyLatents,
    is_new: Bool[Array, "*b f"],
    parametrization: Parametrization,
) -> Float[Array, ""]:
    """Mean squared error of the velocity (equation 5) over the new frames; other frames of `output` are ignored."""
    residual = parametrization.residual(
        output.astype(jnp.float32), x0.astype(jnp.float32), noisy.noise, _per_frame(noisy.sigma)
    )
    mask = jnp.broadcast_to(is_new, noisy.sigma.shape)
    frame_error = jnp.mean(jnp.square(residual), axis=(2, 3, 4))
    return jnp.sum(jnp.where(mask, frame_error, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def _per_frame(values: Float[Array, "b f"]) -> Float[Array, "b f 1 1 1"]:
    return values[:, :, None, None, None]
