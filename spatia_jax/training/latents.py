"""Gives a trained autoencoder latents of zero mean and unit power, without a change to what it reconstructs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed


def latent_statistics(
    model: Model, params: Params, videos: UInt8[np.ndarray, "n t h w 3"]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over videos, [c] each."""
    encode = jax.jit(lambda video: model.encode({"autoencoder": params}, to_signed(video[None]))[0])
    latents = np.concatenate([np.asarray(encode(jnp.asarray(video))).reshape(-1, model.config.autoencoder.z_dim)
                              for video in videos])  # fmt: skip
    return latents.mean(0), latents.std(0)


def normalize_latents(model: Model, params: Params, videos: UInt8[np.ndarray, "n t h w 3"]) -> Params:
    """Parameters whose latents have mean 0 and mean square 1 over `videos`, and whose decodings are the same.

    All channels are divided by one number, so that a channel that says little about the picture stays small and does
    not weigh as much in the generator's loss as one that says much.

    The released autoencoder keeps such statistics as constants beside its weights (spec 2.8), one for each channel;
    ours are folded into the two linear layers on either side of the latents, so that the weights alone say everything.
    """
    mean, std = latent_statistics(model, params, videos)
    channels, scale = len(mean), np.sqrt(np.mean(np.square(std)))
    into, out_of = params["to_moments"], params["from_latents"]
    kernel = into["kernel"].at[:, :channels].divide(scale)
    bias = into["bias"].at[:channels].set((into["bias"][:channels] - mean) / scale)
    back = {"kernel": out_of["kernel"] * scale, "bias": out_of["bias"] + mean @ out_of["kernel"]}
    return {**params, "to_moments": {"kernel": kernel, "bias": bias}, "from_latents": back}
