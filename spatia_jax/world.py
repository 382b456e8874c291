"""The loop of Spatia on one page (paper Fig. 4): project, retrieve, denoise, decode, map, remember.

A `World` is everything that the next clip depends on. `clip_step` is a pure function from a world and a request to
the next world and a clip; `rollout` is an opening clip and a `lax.scan` of `clip_step`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from spatia_jax import diffusion, mapper, memory, splat
from spatia_jax.cameras import Cameras
from spatia_jax.memory import OBSERVED, FrameBank, PointMap
from spatia_jax.model import Model, Params
from spatia_jax.splat import Projection


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class World:
    """The state of a rollout between two clips.

    Attributes:
        point_map: the static scene, as far as it is known.
        frame_bank: past frames that can be retrieved as references.
        history: [n, h, w, 3] uint8, the last frames, n = clip.history_frames.
        history_cameras: Cameras [n].
        key: PRNG key of the whole rollout; clip k draws from `fold_in(key, k)`.
        clip_index: int32 scalar, clips made so far.
        frame_count: int32 scalar, frames made so far; points know the frame that brought them by this number.
    """

    point_map: PointMap
    frame_bank: FrameBank
    history: Array
    history_cameras: Cameras
    key: Array
    clip_index: Array
    frame_count: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipRequest:
    """What the user asks of one clip.

    Attributes:
        cameras: Cameras [t] of the frames to come (an opening clip's first camera is the photo's).
        context: [l, d] text embedding.
        negative_context: [l, d] what guidance steers away from.
        moving: [t, h, w] bool, pixels that the user knows to move; they stay out of the map.
    """

    cameras: Cameras
    context: Array
    negative_context: Array
    moving: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Clip:
    """What one round returns: t frames, what they were painted on, and what the mapper made of them.

    Attributes:
        frames: [t, h, w, 3] uint8.
        projection: the map in the clip's cameras before it was updated, t views.
        references: [K] int32 indices into the frame bank, -1 where none was found.
        report: scalars of the mapper.
    """

    frames: Array
    projection: Projection
    references: Array
    report: dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """What the transformer paints on: a batch of one, f latent frames: references, then history, then new ones.

    Attributes:
        clean: [1, f, p, q, c] latents, zero where new; is_clean: [f] bool.
        control: [1, f - references, p, q, 2c] latents of projection and hole mask; None when the map is withheld.
        noise: [1, f, p, q, c], what sampling starts from.
        context, negative_context: [1, l, d].
        num_references: static.
    """

    clean: Array
    is_clean: Array
    control: Array | None
    noise: Array
    context: Array
    negative_context: Array
    num_references: int = field(metadata={"static": True})


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
    seen = render_map(model, world, view)
    request = ClipRequest(view, jnp.zeros((0, 0)), jnp.zeros((0, 0)), jnp.zeros((1, *photo.shape[:2]), bool))
    return _map(model, params, request, photo[None], seen).depth[0]


def render_map(model: Model, world: World, cameras: Cameras) -> Projection:
    """The point map as the cameras see it."""
    config, point_map = model.config, world.point_map
    return splat.render(
        point_map.positions, point_map.colors, point_map.valid, cameras,
        height=config.clip.height, width=config.clip.width, config=config.splat,
    )  # fmt: skip


def opening_step(model: Model, params: Params, world: World, request: ClipRequest) -> tuple[World, Clip]:
    """The first clip: starts at the photo, without references (spec 2.5, round 0)."""
    projection, conditions, references = prepare(model, params, world, request, opening=True)
    latents = denoise(model, params, conditions)
    return finish(model, params, world, request, projection, latents, references, opening=True)


def clip_step(model: Model, params: Params, world: World, request: ClipRequest) -> tuple[World, Clip]:
    """One round of the loop: project, retrieve, denoise, decode, map, remember."""
    projection, conditions, references = prepare(model, params, world, request)
    latents = denoise(model, params, conditions)
    return finish(model, params, world, request, projection, latents, references)


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


def prepare(
    model: Model, params: Params, world: World, request: ClipRequest, *, opening: bool = False
) -> tuple[Projection, Conditions, Array]:
    """Project and retrieve: everything that the transformer is given."""
    config = model.config
    cameras = request.cameras if opening else Cameras.concatenate([world.history_cameras, request.cameras])
    projection = render_map(model, world, cameras)
    history = world.history[-1:] if opening else world.history
    clean = model.encode(params, to_signed(history)[None])
    found = jnp.full((config.clip.references,), -1, jnp.int32)
    if not opening:
        references, found = _retrieve(config, world, cameras)
        clean = jnp.concatenate([encode_references(model, params, references), clean], axis=1)
    control = encode_control(model, params, projection) if config.memory.use_map else None
    num_clean, num_new = clean.shape[1], (len(cameras) - len(history)) // 4
    clean = jnp.pad(clean, ((0, 0), (0, num_new), (0, 0), (0, 0), (0, 0)))
    key = jax.random.fold_in(world.key, world.clip_index)
    conditions = Conditions(
        clean=clean,
        is_clean=jnp.arange(num_clean + num_new) < num_clean,
        control=control,
        noise=jax.random.normal(key, clean.shape, clean.dtype),
        context=request.context[None],
        negative_context=request.negative_context[None],
        num_references=0 if opening else config.clip.references,
    )
    return projection, conditions, found


def _retrieve(config, world: World, cameras: Cameras) -> tuple[Array, Array]:
    """K frames [K, h, w, 3] that saw what the clip will see, and their slots (-1: none, the oldest history frame
    stands in, as the released code does)."""
    bank = world.frame_bank
    slots, _, found = memory.retrieve(
        bank, world.point_map, cameras[:: config.clip.target_stride], config.memory.retrieval,
        num_references=config.clip.references, height=config.clip.height, width=config.clip.width,
    )  # fmt: skip
    found = found & config.memory.use_references
    frames = jnp.where(found[:, None, None, None], bank.frames[slots], world.history[0])
    return frames, jnp.where(found, slots, -1)


def encode_references(model: Model, params: Params, frames: UInt8[Array, "k h w 3"]) -> Float[Array, "1 k p q c"]:
    """Each reference frame alone, as one latent frame."""
    return model.encode(params, to_signed(frames)[:, None])[:, 0][None]


def encode_control(model: Model, params: Params, projection: Projection) -> Float[Array, "1 f p q c"]:
    """Latents of the projection ([-1, 1], holes black) beside latents of the hole mask (1 = hole; spec 2.5)."""
    color = projection.color * 2.0 - 1.0
    holes = jnp.broadcast_to(1.0 - projection.coverage[..., None], color.shape)
    color, holes = model.encode(params, jnp.stack([color, holes]))
    return jnp.concatenate([color, holes], axis=-1)[None]


def denoise(model: Model, params: Params, conditions: Conditions) -> Float[Array, "1 f p q c"]:
    """Samples the clip's latents (history and new ones) in one scan over the denoising steps."""
    latents = diffusion.sample(
        denoiser(model, params, conditions), conditions.noise, model.config.sampler, **given(model, conditions)
    )
    return latents[:, conditions.num_references :]


def given(model: Model, conditions: Conditions) -> dict:
    """What `diffusion.step` and `diffusion.sample` need beside the noise."""
    return {
        "parametrization": model.config.flow.parametrization,
        "clean": conditions.clean,
        "is_clean": conditions.is_clean,
    }


def denoiser(model: Model, params: Params, conditions: Conditions) -> diffusion.Denoiser:
    """The transformer under these conditions, as a function `(latents [1, f, p, q, c], timestep) -> output`.

    Given latent frames are told timestep 0 (spec 2.5). Guidance changes only the text.
    """

    def predict(context: Array) -> diffusion.Denoiser:
        def call(latents, timestep):
            timesteps = diffusion.frame_timesteps(timestep, conditions.is_clean)
            return model.denoise(
                params, latents, jnp.broadcast_to(timesteps, (len(latents), *timesteps.shape)), context,
                control=conditions.control,
                control_scale=model.config.control_scale,
                num_references=conditions.num_references,
            )  # fmt: skip

        return call

    return diffusion.guided(predict(conditions.context), predict(conditions.negative_context), model.config.guidance)


def finish(
    model: Model,
    params: Params,
    world: World,
    request: ClipRequest,
    projection: Projection,
    latents: Float[Array, "1 f p q c"],
    references: Array,
    *,
    opening: bool = False,
) -> tuple[World, Clip]:
    """Decode, map, remember: what the new frames do to the world."""
    config = model.config
    num_new = len(request.cameras)  # an opening clip's first frame is the photo, decoded again
    frames = to_bytes(model.decode(params, latents)[0, -num_new:])
    seen = jax.tree.map(lambda leaf: leaf[-num_new:], projection)

    mapped = _map(model, params, request, frames, seen)
    stride, pixel_stride = config.memory.map_stride, config.memory.pixel_stride
    *points, keyframes = mapper.select_points(mapped, to_unit(frames), mapped.cameras, stride, pixel_stride)
    point_map = memory.insert(
        world.point_map, *points,
        provenance=world.clip_index + 1,
        voxel_size=config.memory.voxel_size,
        keyframes=world.frame_count + keyframes,
    )  # fmt: skip
    # A frame becomes a reference when it has left the history; until then the transformer is given it anyway.
    n, stride = config.clip.history_frames, config.clip.reference_stride
    past = frames if opening else jnp.concatenate([world.history, frames])
    cameras = request.cameras if opening else Cameras.concatenate([world.history_cameras, request.cameras])
    leaving = slice(stride - 1, len(past) - n, stride)
    bank = memory.remember(world.frame_bank, past[leaving], cameras[leaving], world.clip_index + 1)
    after = World(
        point_map=point_map,
        frame_bank=bank,
        history=jnp.concatenate([world.history, frames])[-n:],
        history_cameras=Cameras.concatenate([world.history_cameras, request.cameras])[-n:],
        key=world.key,
        clip_index=world.clip_index + 1,
        frame_count=world.frame_count + num_new,
    )
    return after, Clip(frames, seen, references, mapped.report | {"points": point_map.num_points})


def _map(model: Model, params: Params, request: ClipRequest, frames: Array, seen: Projection) -> mapper.MapUpdate:
    """Depth, motion and confidence of the new frames, in the map's own scale."""
    return mapper.update(
        model.config.mapper,
        depth_frames=model.estimate_depth(params, to_signed(frames)),
        frames=to_unit(frames),
        cameras=request.cameras,
        map_depth=seen.depth,
        map_color=seen.color / jnp.maximum(seen.coverage, 1e-3)[..., None],
        masks=request.moving,
    )


def to_unit(frames: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Bytes to [0, 1]."""
    return frames.astype(jnp.float32) / 255.0


def to_signed(frames: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Bytes to [-1, 1]."""
    return frames.astype(jnp.float32) * (2.0 / 255.0) - 1.0


def to_bytes(video: Float[Array, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
    """[-1, 1] to bytes, rounded."""
    return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)
