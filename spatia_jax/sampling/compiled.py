"""Functions of a model under jit, compiled once a process for each model, whoever calls them.

On a mesh, parameters lie where the caller put them, and what goes from piece to piece lies whole on every device: left
to itself, XLA gives each result another layout, and every layout would be compiled for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spatia_jax import diffusion, stages, world
from spatia_jax.cameras import Cameras
from spatia_jax.model import Model, Params
from spatia_jax.parallel import on_every_device
from spatia_jax.splat import Projection
from spatia_jax.stages import denoiser, given
from spatia_jax.state import Conditions, World


def _jit(function: Callable, static: tuple[str, ...] = ()) -> Callable:
    @functools.wraps(function)
    def gathered(*args, **kwargs):
        return on_every_device(function(*args, **kwargs))

    return jax.jit(gathered, static_argnames=static)


observe = _jit(world.observe, ("model",))
estimate_view_depth = _jit(world.estimate_view_depth, ("model",))
embed_text = _jit(Model.embed_text, ("self",))

# A clip in three pieces.
before_denoising = _jit(world.before_denoising, ("model", "opening"))
after_denoising = _jit(world.after_denoising, ("model", "opening"))


# The same for frames that come from elsewhere.
def _look(model: Model, before: World, cameras: Cameras, *, opening: bool) -> tuple[Projection, Array]:
    """The map in the cameras, and the slots of the references that a clip would get."""
    slots = jnp.full((model.config.clip.references,), -1, jnp.int32)
    return stages.project(model, before, cameras), slots if opening else stages.retrieve(model, before, cameras)[1]


def _map_and_remember(model, params, before, request, frames, references, *, opening):
    seen = stages.project(model, before, request.cameras)
    return world.map_and_remember(model, params, before, request, frames, seen, references, opening=opening)


def _paint(model: Model, params: Params, conditions: Conditions, *, num_new: int) -> Array:
    return stages.decode(model, params, stages.denoise(model, params, conditions), num_new)


look = _jit(_look, ("model", "opening"))
map_and_remember = _jit(_map_and_remember, ("model", "opening"))
paint = _jit(_paint, ("model", "num_new"))


@_jit
def init_state(conditions: Conditions) -> diffusion.SamplerState:
    """The sampler before its first step."""
    return diffusion.init_state(conditions.noise, clean=conditions.clean, is_clean=conditions.is_clean)


def _denoising_step(
    model: Model, params: Params, conditions: Conditions, state: diffusion.SamplerState, row: diffusion.Plan
) -> diffusion.SamplerState:
    return diffusion.step(denoiser(model, params, conditions), state, row, **given(model, conditions))


denoising_step = _jit(_denoising_step, ("model",))
PAINTERS = ("transformer", "lora")  # whose parameters it is given

# The video of all clips, when it is decoded at the end.
encode = _jit(Model.encode, ("self",))
decode_chunk = _jit(Model.decode_chunk, ("self",))


def versions() -> dict[str, int]:
    """How many versions of each piece have been compiled: two a model, for opening and continuing clips."""
    pieces = {"before": before_denoising, "step": denoising_step, "after": after_denoising}
    return {name: piece._cache_size() for name, piece in pieces.items()}  # type: ignore[attr-defined]
