"""A sample video while training: one held-out opening clip through the sampler, beside what it is painted on."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from spatia_jax import stages
from spatia_jax.model import Model, Params
from spatia_jax.parallel import on_every_device
from spatia_jax.pixels import to_bytes, to_signed
from spatia_jax.state import Conditions
from spatia_jax.text import Tokenizer
from spatia_jax.training.examples import as_sequence, cut_clip, render_clip


def make_sampler(model: Model, record: dict, tokenizer: Tokenizer) -> Callable[[Params], UInt8[np.ndarray, "t h w 3"]]:
    """`sample(params)`: the record's opening clip as the networks paint it, below the true one and the projection.

    The noise is the same each time. `params` needs autoencoder, transformer and text encoder.
    """
    clip = cut_clip(model, as_sequence(record), 1, "opening")
    texts = [record["caption"] + model.config.prompt_suffix, ""]
    ids, mask = tokenizer.encode(texts, model.config.clip.text_length)

    @jax.jit
    def paint(params: Params) -> Array:
        example = render_clip(model, clip, jax.random.key(0))
        context = model.embed_text(params, jnp.asarray(ids), jnp.asarray(mask))
        first = model.encode(params, to_signed(example.video[:1])[None])
        shown = stages.encode_control(model, params, example.projection, example.point_map, example.cameras)
        frames = shown.shape[1]
        clean = jnp.pad(first, ((0, 0), (0, frames - 1), (0, 0), (0, 0), (0, 0)))
        conditions = Conditions(
            clean=clean,
            is_clean=jnp.arange(frames) < 1,
            control=shown,
            noise=jax.random.normal(jax.random.key(1), clean.shape, clean.dtype),
            context=context[:1],
            negative_context=context[1:],
            num_references=0,
            opening=True,
        )
        latents = stages.denoise(model, params, conditions)
        painted = stages.decode(model, params, latents, len(example.video))
        projection = to_bytes(example.projection.color * 2.0 - 1.0)
        return on_every_device(jnp.concatenate([jnp.asarray(example.video), projection, painted], axis=1))

    return lambda params: np.asarray(paint(params))
