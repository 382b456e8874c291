"""What the autoencoder, the depth network, the inpainter and the motion network are trained for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spatia_jax import memory
from spatia_jax.cameras import Cameras
from spatia_jax.mapper.motion_cues import Cues
from spatia_jax.model import Model
from spatia_jax.models.depth_loss import depth_loss
from spatia_jax.pixels import to_signed, to_unit
from spatia_jax.pyramid import fill_holes
from spatia_jax.training.motion import unpack
from spatia_jax.training.state import Params

_ENTROPY = 5.0  # weight of the cross-entropy, which is small: most pixels are easy


@dataclass(frozen=True)
class AutoencoderObjective:
    """Reconstruction of crops from slightly noisy latents.

    The released encoder's mode is what is used, so only its mean is trained; the noise keeps neighbouring latents alike
    in picture, which the generator needs, and the penalty keeps their scale. The squared error is what PSNR measures;
    the absolute error, and that of finite differences, keep edges and texture from being averaged away.
    """

    model: Model
    noise: float = 0.03
    penalty: float = 1e-4
    freeze_encoder: bool = False  # a principal start's latents stay principal components; the decoder learns

    def init(self, key: Array) -> Params:
        return self.model.init("autoencoder", key)

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, dict[str, Array]]:
        """`batch["frames"]`: [b, t, h, w, 3] uint8."""
        video = to_signed(batch["frames"])
        if self.freeze_encoder:
            params = params | {name: jax.lax.stop_gradient(params[name]) for name in ("encoder", "to_moments")}
        latents, _ = self.model.encode_moments({"autoencoder": params}, video)
        noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:], latents.dtype))(keys)
        noisy = latents + self.noise * noise
        error = self.model.reconstruct({"autoencoder": params}, noisy) - video
        squared = jnp.mean(jnp.square(error))
        edges = jnp.mean(jnp.abs(jnp.diff(error, axis=-2))) + jnp.mean(jnp.abs(jnp.diff(error, axis=-3)))
        power = jnp.mean(jnp.square(latents))
        loss = squared + 0.2 * jnp.mean(jnp.abs(error)) + 0.1 * edges + self.penalty * power
        return loss, {"psnr": 10 * jnp.log10(4.0 / squared), "latent_power": power}


@dataclass(frozen=True)
class DepthObjective:
    """Metric depth of single frames."""

    model: Model

    def init(self, key: Array) -> Params:
        return self.model.init("depth", key)

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, dict[str, Array]]:
        """`batch`: frames [b, h, w, 3] uint8, depth [b, h, w] metres, 0 where unknown."""
        del keys
        target = batch["depth"].astype(jnp.float32)
        predicted, known = self.model.estimate_depth({"depth": params}, to_signed(batch["frames"])), target > 0
        relative = jnp.mean(jnp.abs(predicted - target) / jnp.where(known, target, 1.0), where=known)
        return depth_loss(predicted, target, known), {"relative_error": relative}


@dataclass(frozen=True)
class InpainterObjective:
    """PSNR in the holes of projections, meant over maps: a plain square would leave the choice to the darkest rooms.

    The views of one map are pooled, as those of a video are when it is scored. Maps with fewer holes than `full_share`
    of the picture count in proportion; an error below `floor` is as good as 0. What the panorama alone says is scored
    too, with `guess_weight`.
    """

    model: Model
    full_share: float = 0.02
    floor: float = 1e-3
    guess_weight: float = 0.3

    def init(self, key: Array) -> Params:
        return self.model.init("inpainter", key)

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, dict[str, Array]]:
        """`batch`: see `training.views.view_batches`."""
        del keys
        maps, views = batch["truth"].shape[:2]
        batch = jax.tree.map(lambda leaf: leaf.reshape(maps * views, *leaf.shape[2:]), batch)
        names = ("color", "coverage", "truth", "panorama")
        color, coverage, truth, panorama = (to_unit(batch[name]) for name in names)
        config = self.model.config.inpainter
        assert config is not None
        height, width = coverage.shape[1:]
        place = memory.places(Cameras(batch["pose"], batch["intrinsics"]), height, width, config.panorama)
        holes, filled = (1 - coverage)[..., None], fill_holes(color, coverage)
        correction, guess = self.model.correct_fill({"inpainter": params}, color, coverage, panorama, place)
        area = jnp.square(holes).reshape(maps, -1).mean(1)
        weight = jnp.minimum(area / self.full_share, 1.0)

        def mean_log_error(picture: Array) -> Array:
            error = jnp.square(holes * (picture - truth)).reshape(maps, -1).mean(1) / jnp.maximum(area, 1e-6)
            return jnp.sum(weight * jnp.log(error + self.floor)) / jnp.maximum(jnp.sum(weight), 1e-6)

        def decibel(log_error: Array) -> Array:
            return -10 / jnp.log(10.0) * log_error

        painted, guessed = mean_log_error(filled + correction), mean_log_error(guess)
        report = {"psnr": painted, "psnr_panorama": guessed, "psnr_filled": mean_log_error(filled)}
        return painted + self.guess_weight * guessed, {name: decibel(error) for name, error in report.items()}


@dataclass(frozen=True)
class MotionObjective:
    """Cross-entropy of every pixel, and the overlap of all masks of the batch together, which is what is measured.

    Pictures are mirrored, and their colours mixed anew, by chance: the network should learn what contradicts a static
    scene rather than which colours things that move happen to have.
    """

    model: Model

    def init(self, key: Array) -> Params:
        return self.model.init("motion", key)

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, dict[str, Array]]:
        """`batch`: see `training.motion.pack`."""
        cues, moving = _vary(*unpack(batch), keys)
        odds, truth = self.model.find_motion({"motion": params}, cues), moving.astype(jnp.float32)
        entropy = jnp.mean(jax.nn.softplus(odds) - truth * odds)
        guess = jax.nn.sigmoid(odds)
        overlap = _overlap(guess, truth)
        found = (odds > 0).astype(jnp.float32)
        return _ENTROPY * entropy + 1 - overlap, {"entropy": entropy, "overlap": _overlap(found, truth)}


def _overlap(guess: Array, truth: Array) -> Array:
    """Intersection over union of soft masks, of all pixels together."""
    both = jnp.sum(guess * truth)
    return (both + 1) / (jnp.sum(guess) + jnp.sum(truth) - both + 1)


def _vary(cues: Cues, moving: Array, keys: Array) -> tuple[Cues, Array]:
    """Mirrors half of the pictures, and gives each other colours: channels in another order, each with a gain."""

    def draw(key: Array) -> tuple[Array, Array]:
        flip_key, order_key, gain_key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, jnp.eye(3))
        mixing = order * jax.random.uniform(gain_key, (1, 3), minval=0.7, maxval=1.1)
        return jax.random.bernoulli(flip_key), mixing

    flips, mixing = jax.vmap(draw)(keys)

    def mirrored(images: Array) -> Array:
        return jnp.where(flips.reshape(-1, *(1,) * (images.ndim - 1)), images[:, :, ::-1], images)

    frames = jnp.einsum("bhwc,bce->bhwe", mirrored(cues.frames), mixing)
    differences = jnp.einsum("bhwdc,bce->bhwde", mirrored(cues.differences), mixing)
    return Cues(frames, differences, mirrored(cues.scalars)), mirrored(moving)
