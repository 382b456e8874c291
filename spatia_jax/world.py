"""The loop of Spatia on one page (paper Fig. 4): project, retrieve, denoise, decode, map, remember.

A `World` is everything that the next clip depends on. `clip_step` is a pure function from a world and a request to
the next world and a clip; `rollout` is an opening clip and a `lax.scan` of `clip_step`. Each stage is a function of
`stages.py`, the fifth of `map_stage.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from spatia_jax import map_stage, memory, stages
from spatia_jax.cameras import Cameras
from spatia_jax.mapper import MapUpdate
from spatia_jax.memory import OBSERVED
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_unit
from spatia_jax.splat import Projection
from spatia_jax.state import Clip, ClipRequest, Conditions, World


def rollout(
    model: Model, params: Params, world: World, opening: ClipRequest, continuing: ClipRequest
) -> tuple[World, Clip, Clip]:
    """A whole video as one function: the opening clip, then a scan over continuing requests.

    Args:
        opening: a request with clip.opening_frames cameras.
        continuing: requests stacked on a leading axis.

    Returns:
        The last world, the opening clip, and the continuing clips stacked on a leading axis.
    """
    world, first = opening_step(model, params, world, opening)
    world, rest = jax.lax.scan(lambda w, request: clip_step(model, params, w, request), world, continuing)
    return world, first, rest


def opening_step(model: Model, params: Params, world: World, request: ClipRequest) -> tuple[World, Clip]:
    """The first clip: starts at the photo, without references (spec 2.5, round 0)."""
    return clip_step(model, params, world, request, opening=True)


def clip_step(
    model: Model, params: Params, world: World, request: ClipRequest, *, opening: bool = False
) -> tuple[World, Clip]:
    """One round of the loop: project, retrieve, denoise, decode, map, remember."""
    projection, conditions, references = before_denoising(model, params, world, request, opening=opening)
    latents = stages.denoise(model, params, conditions)
    return after_denoising(model, params, world, request, projection, latents, references, opening=opening)


def before_denoising(
    model: Model, params: Params, world: World, request: ClipRequest, *, opening: bool
) -> tuple[Projection, Conditions, Array]:
    """Project and retrieve. Returns the projection, the transformer's conditions, and the references' slots."""
    if opening:
        history, cameras = world.history[-1:], request.cameras  # the photo is the first frame of the clip
        references, slots = world.history[:0], jnp.full((model.config.clip.references,), -1, jnp.int32)
        projection = stages.project(model, world, cameras)
    else:
        history, cameras = world.history, Cameras.concatenate([world.history_cameras, request.cameras])
        projection = stages.project(model, world, cameras)
        references, slots = stages.retrieve(model, world, cameras)
    conditions = stages.condition(model, params, world, request, projection, history, references, opening=opening)
    return projection, conditions, slots


def after_denoising(
    model: Model,
    params: Params,
    world: World,
    request: ClipRequest,
    projection: Projection,
    latents: Float[Array, "1 f p q c"],
    references: Array,
    *,
    opening: bool,
) -> tuple[World, Clip]:
    """Decode, map, remember: what the new frames are, and what they do to the world."""
    num_new = len(request.cameras)
    seen = jax.tree.map(lambda leaf: leaf[-num_new:], projection)
    frames = stages.decode(model, params, latents, num_new)
    after, mapped, _ = map_and_remember(model, params, world, request, frames, seen, references, opening=opening)
    fresh = latents[0] if opening else latents[0, -(num_new // model.config.autoencoder.time_factor) :]
    return after, Clip(frames, seen, references, fresh, mapped.report | {"points": after.point_map.num_points})


def map_and_remember(
    model: Model,
    params: Params,
    world: World,
    request: ClipRequest,
    frames: UInt8[Array, "t h w 3"],
    seen: Projection,
    references: Array,
    *,
    opening: bool,
) -> tuple[World, MapUpdate, Cameras]:
    """What new frames, wherever they come from, do to the world: the next one, what was mapped, and the found path.

    `seen` is the map in the request's cameras.
    """
    mapped, path = map_stage.map_frames(model, params, world, request, frames, seen)
    after = stages.remember(model, world, request, frames, mapped, path, references, opening=opening)
    return after, mapped, path


def new_world(model: Model, key: Array) -> World:
    """A world in which nothing has been seen yet."""
    clip, stored = model.config.clip, model.config.memory
    frames = jnp.zeros((clip.history_frames, clip.height, clip.width, 3), jnp.uint8)
    bank = memory.empty_bank(stored.bank_frames, clip.height, clip.width)
    return World(
        point_map=memory.empty(stored.capacity),
        frame_bank=bank,
        history=frames,
        history_cameras=jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[0], (clip.history_frames, *leaf.shape[1:])), bank.cameras
        ),
        key=key,
        clip_index=jnp.int32(0),
        frame_count=jnp.int32(0),
        path_from_map=jnp.eye(3, 4),
    )


def observe(
    model: Model,
    world: World,
    photo: UInt8[Array, "h w 3"],
    depth: Float[Array, "h w"],
    camera: Cameras,
    moving: Bool[Array, "h w"],
) -> World:
    """The world after one real RGB-D view; the next clip starts from it.

    Args:
        depth: metres (or scene units), 0 or NaN where unknown.
        camera: of shape ().
        moving: pixels that stay out of the map.
    """
    points = memory.from_depth(to_unit(photo), depth, camera, ~moving)
    point_map = memory.insert(world.point_map, *points, provenance=OBSERVED, voxel_size=model.config.memory.voxel_size)
    view = jax.tree.map(lambda leaf: leaf[None], camera)
    return dataclasses.replace(
        world,
        point_map=point_map,
        frame_bank=memory.remember(world.frame_bank, photo[None], view, world.clip_index),
        history=jnp.broadcast_to(photo, world.history.shape),
        history_cameras=jax.tree.map(
            lambda leaf, old: jnp.broadcast_to(leaf, old.shape), camera, world.history_cameras
        ),
    )


def open_world(
    model: Model,
    photo: UInt8[Array, "h w 3"],
    depth: Float[Array, "h w"],
    camera: Cameras,
    key: Array,
    moving: Bool[Array, "h w"] | None = None,
) -> World:
    """The world that one RGB-D view shows (see `observe`)."""
    moving = jnp.zeros(depth.shape, bool) if moving is None else moving
    return observe(model, new_world(model, key), photo, depth, camera, moving)


def estimate_view_depth(
    model: Model, params: Params, world: World, photo: UInt8[Array, "h w 3"], camera: Cameras
) -> Float[Array, "h w"]:
    """Depth of a photo without one: the depth network's, fitted to the map where that is in view."""
    view = jax.tree.map(lambda leaf: leaf[None], camera)
    seen = stages.project(model, world, view)
    request = ClipRequest(view, jnp.zeros((0, 0)), jnp.zeros((0, 0)), jnp.zeros((1, *photo.shape[:2]), bool))
    return map_stage.map_trusting(model, params, request, photo[None], seen).depth[0]
