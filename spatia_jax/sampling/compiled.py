"""Functions of a model under jit, compiled once a process for each model, whoever calls them."""

from __future__ import annotations

import jax

from spatia_jax import diffusion, world
from spatia_jax.model import Model, Params
from spatia_jax.stages import denoiser, given
from spatia_jax.state import Conditions

observe = jax.jit(world.observe, static_argnames="model")
estimate_view_depth = jax.jit(world.estimate_view_depth, static_argnames="model")
embed_text = jax.jit(Model.embed_text, static_argnums=0)

# A clip in three pieces.
before_denoising = jax.jit(world.before_denoising, static_argnames=("model", "opening"))
after_denoising = jax.jit(world.after_denoising, static_argnames=("model", "opening"))


@jax.jit
def init_state(conditions: Conditions) -> diffusion.SamplerState:
    """The sampler before its first step."""
    return diffusion.init_state(conditions.noise, clean=conditions.clean, is_clean=conditions.is_clean)


def _denoising_step(
    model: Model, params: Params, conditions: Conditions, state: diffusion.SamplerState, row: diffusion.Plan
) -> diffusion.SamplerState:
    return diffusion.step(denoiser(model, params, conditions), state, row, **given(model, conditions))


denoising_step = jax.jit(_denoising_step, static_argnames="model")


encode = jax.jit(Model.encode, static_argnums=0)
decode_chunk = jax.jit(Model.decode_chunk, static_argnums=0)


def versions() -> dict[str, int]:
    """How many versions of each piece have been compiled: two a model, for opening and continuing clips."""
    pieces = {"before": before_denoising, "step": denoising_step, "after": after_denoising}
    return {name: piece._cache_size() for name, piece in pieces.items()}  # type: ignore[attr-defined]
