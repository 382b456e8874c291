"""The stage of a clip between decoding and remembering: what its new frames say about the scene.

Commanded cameras are trusted (`map_trusting`), or found (`map_tracking`):

    find_cameras ─► find_moving ─► settle
    draw the map, match, adjust (twice)   what moves   what may enter the map
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from spatia_jax import mapper, memory, splat
from spatia_jax.cameras import Cameras
from spatia_jax.mapper import tracking
from spatia_jax.mapper.motion import moving_pixels
from spatia_jax.mapper.motion_cues import Cues, motion_cues
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed, to_unit
from spatia_jax.splat import Projection
from spatia_jax.stages import keyframes, plain_color, project
from spatia_jax.state import ClipRequest, World

_SUFFICES = 0.9  # coverage by given points alone from which on they are drawn alone
_BLENDED = 2.0  # pixels: what lies further from where it shows is a blend of two surfaces, and no place


def map_frames(
    model: Model,
    params: Params,
    world: World,
    request: ClipRequest,
    frames: UInt8[Array, "t h w 3"],
    seen: Projection,
) -> tuple[mapper.MapUpdate, Cameras]:
    """Depth, motion and confidence of the keyframes among new frames, and the cameras of all of them, as found."""
    if model.config.mapper.tracking is None:
        return map_trusting(model, params, request, frames, seen), request.cameras
    return map_tracking(model, params, world, request, frames)


def map_tracking(
    model: Model, params: Params, world: World, request: ClipRequest, frames: UInt8[Array, "t h w 3"]
) -> tuple[mapper.MapUpdate, Cameras]:
    """The same with cameras that are found by bundle adjustment; the request's are where it starts."""
    tracked = find_cameras(model, params, world, request, frames)
    moving = request.moving[keyframes(model, len(frames))] | find_moving(model, params, world, tracked)
    return settle(model, tracked, moving), tracked.path


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tracked:
    """Keyframes of a clip whose cameras have been found.

    Attributes:
        frames: [k, h, w, 3] in [0, 1].
        cameras: Cameras [k]; path: Cameras [t] of all frames.
        prior: [k, h, w] depth as the network says it; depth: [k, h, w] the same in the map's scale.
        seen: the map in the found cameras.
    """

    frames: Array
    cameras: Cameras
    path: Cameras
    prior: Array
    depth: Array
    seen: Projection


def find_cameras(
    model: Model, params: Params, world: World, request: ClipRequest, frames: UInt8[Array, "t h w 3"]
) -> Tracked:
    """Keyframes matched with the map and adjusted together, from the commanded cameras on."""
    config, tracked = model.config.mapper, model.config.mapper.tracking
    assert tracked is not None
    chosen = keyframes(model, len(frames))
    told = tracking.moved(request.cameras, world.path_from_map)
    shown, depth = to_unit(frames[chosen]), model.estimate_depth(params, to_signed(frames[chosen]))
    last = world.history_cameras[-1:]
    anchor = tracking.Views(to_unit(world.history[-1:]), project(model, world, last).depth, last)

    def aligned_to(seen: Projection, cameras: Cameras) -> Float[Array, "k h w"]:
        return mapper.update(config, depth, shown, cameras, seen.depth, plain_color(seen)).depth

    def again(_, thought: Cameras) -> Cameras:
        drawn = map_views(model, world, thought)
        seen = Projection(drawn.frames, drawn.coverage, drawn.depth)
        ours = tracking.Views(shown, aligned_to(seen, thought), told[chosen])
        return tracking.track(tracked, anchor, ours, drawn).cameras

    found = jax.lax.fori_loop(0, tracked.rounds, again, told[chosen])
    path = tracking.follow(told, mapper.keyframe_numbers(len(frames), model.config.memory.map_stride), found)
    seen = project(model, world, found)
    return Tracked(shown, found, path, depth, aligned_to(seen, found), seen)


def find_moving(model: Model, params: Params, world: World, tracked: Tracked) -> Bool[Array, "k h w"]:
    """What moves in the keyframes: as the motion network says, or by the rule that needs no weights."""
    config, network = model.config.mapper.tracking, model.config.motion
    assert config is not None
    if network is None:
        seen = tracked.seen
        return moving_pixels(
            config.motion, tracked.frames, tracked.depth, tracked.cameras, plain_color(seen), seen.depth > 0
        )
    odds = model.find_motion(params, motion_cues_of(model, world, tracked))
    odds = jax.image.resize(odds, tracked.depth.shape, "linear")
    return odds > math.log(network.threshold / (1 - network.threshold))


def motion_cues_of(model: Model, world: World, tracked: Tracked) -> Cues:
    """What the motion network is shown."""
    config, seen = model.config.mapper.tracking, tracked.seen
    assert config is not None
    return motion_cues(
        config.motion, tracked.frames, tracked.depth, tracked.cameras, plain_color(seen), seen.depth,
        *views_before(model, world),
    )  # fmt: skip


def views_before(model: Model, world: World) -> tuple[Float[Array, "2 h w 3"], Cameras]:
    """The two views before the first keyframe of a clip, from the history."""
    last = len(world.history) - 1
    before = jnp.array([max(last - model.config.memory.map_stride, 0), last])
    return to_unit(world.history[before]), world.history_cameras[before]


def settle(model: Model, tracked: Tracked, moving: Bool[Array, "k h w"]) -> mapper.MapUpdate:
    """What of the keyframes may enter the map, once it is known what moves."""
    seen = tracked.seen
    return mapper.update(
        model.config.mapper, tracked.prior, tracked.frames, tracked.cameras, seen.depth, plain_color(seen), moving,
        judge_motion=False,
    )  # fmt: skip


def map_trusting(
    model: Model, params: Params, request: ClipRequest, frames: UInt8[Array, "t h w 3"], seen: Projection
) -> mapper.MapUpdate:
    """The keyframes' depth in the map's own scale, and what of it is static; the request's cameras are trusted.

    Depth of all frames is aligned, since together they fix a clip's scale better than the keyframes alone.
    """
    config, stride = model.config.mapper, model.config.memory.map_stride
    mapped = mapper.update(
        dataclasses.replace(config, neighbors=tuple(stride * offset for offset in config.neighbors)),
        depth_frames=model.estimate_depth(params, to_signed(frames)),
        frames=to_unit(frames),
        cameras=request.cameras,
        map_depth=seen.depth,
        map_color=plain_color(seen),
        masks=request.moving,
    )
    chosen = keyframes(model, len(frames))
    thinned = jax.tree.map(lambda leaf: leaf[chosen], dataclasses.replace(mapped, report={}))
    return dataclasses.replace(thinned, report=mapped.report)


def map_views(model: Model, world: World, cameras: Cameras) -> tracking.Views:
    """The point map as tracking wants it: given points drawn alone where they suffice, and where all of it really is.

    What earlier clips added about a place that was given stands a little beside it, where a drifting camera put it:
    drawn together they would blur into something in between. And a pixel shows a blend of the discs over it, the
    nearest first: on a floor that is what lies up to a pixel below. The blend of their positions tells how far.
    """
    config, point_map = model.config, world.point_map
    features = jnp.concatenate([point_map.colors, point_map.positions], axis=-1)

    def draw(which: Bool[Array, " n"]) -> Projection:
        return splat.render_in_parts(
            point_map.positions, features, which, cameras,
            height=config.clip.height, width=config.clip.width, config=config.splat,
        )  # fmt: skip

    everything, given = draw(point_map.valid), draw(point_map.valid & (point_map.provenance == memory.OBSERVED))
    beside = jnp.abs(given.depth - everything.depth) < config.mapper.agree_tolerance * everything.depth
    suffices = (given.coverage > _SUFFICES) & beside
    seen = jax.tree.map(
        lambda ours, other: jnp.where(suffices.reshape(suffices.shape + (1,) * (ours.ndim - 3)), ours, other),
        given, everything,
    )  # fmt: skip
    places = seen.color[..., 3:] / jnp.maximum(seen.coverage, 1e-3)[..., None]
    offsets, depth = tracking.displacements(places, cameras)
    plain = (jnp.abs(offsets).max(-1) < _BLENDED) & (seen.depth > 0)
    return tracking.Views(
        seen.color[..., :3], jnp.where(plain, depth, 0.0), cameras, seen.coverage,
        suffices.astype(depth.dtype), jnp.where(plain[..., None], offsets, 0.0),
    )  # fmt: skip
