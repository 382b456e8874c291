"""The stages of a clip, each a pure function: project, retrieve, (condition,) denoise, decode, (map,) remember.

`map` has a file of its own, `map_stage.py`.

`world.py` says in which order they are called, and what passes between clips.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from spatia_jax import diffusion, mapper, memory, release_quirks, splat
from spatia_jax.cameras import Cameras
from spatia_jax.mapper import tracking
from spatia_jax.memory import PointMap
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_bytes, to_signed, to_unit
from spatia_jax.pyramid import fill_holes
from spatia_jax.splat import Projection
from spatia_jax.state import ClipRequest, Conditions, World


def project(model: Model, world: World, cameras: Cameras) -> Projection:
    """The point map as the cameras see it."""
    config, point_map, splats = model.config, world.point_map, model.config.splat
    if config.release_compatible:
        point_map, splats = release_quirks.thinned(point_map, world.clip_index), release_quirks.splat_config(splats)
    seen = splat.render_in_parts(
        point_map.positions, point_map.colors, point_map.valid, cameras,
        height=config.clip.height, width=config.clip.width, config=splats,
    )  # fmt: skip
    return release_quirks.truncated(seen) if config.release_compatible else seen


def retrieve(model: Model, world: World, cameras: Cameras) -> tuple[UInt8[Array, "K h w 3"], Array]:
    """Past frames that saw what the clip will see, and their slots in the bank.

    Where none is found the slot is -1 and the oldest history frame stands in, as in the released code.
    """
    config, bank = model.config, world.frame_bank
    retrieval = release_quirks.RETRIEVAL if config.release_compatible else config.memory.retrieval
    slots, _, found = memory.retrieve(
        bank, world.point_map, cameras[:: config.clip.target_stride], retrieval,
        num_references=config.clip.references, height=config.clip.height, width=config.clip.width,
    )  # fmt: skip
    found = found & config.memory.use_references
    frames = jnp.where(found[:, None, None, None], bank.frames[slots], world.history[0])
    return frames, jnp.where(found, slots, -1)


def condition(
    model: Model,
    params: Params,
    world: World,
    request: ClipRequest,
    projection: Projection,
    history: UInt8[Array, "n h w 3"],
    references: UInt8[Array, "k h w 3"],
    *,
    opening: bool,
) -> Conditions:
    """Everything that the transformer is given, as latents; k is 0 for an opening clip."""
    clean = model.encode(params, to_signed(history)[None])
    if len(references):
        clean = jnp.concatenate([encode_references(model, params, references), clean], axis=1)
    cameras = request.cameras if opening else Cameras.concatenate([world.history_cameras, request.cameras])
    num_clean, num_new = clean.shape[1], len(projection.depth) - len(history)
    num_new //= model.config.autoencoder.time_factor
    clean = jnp.pad(clean, ((0, 0), (0, num_new), (0, 0), (0, 0), (0, 0)))
    repeats, uses_map = model.config.release_compatible, model.config.memory.use_map
    key = release_quirks.noise_key(world) if repeats else jax.random.fold_in(world.key, world.clip_index)
    return Conditions(
        clean=clean,
        is_clean=jnp.arange(num_clean + num_new) < num_clean,
        control=encode_control(model, params, projection, world.point_map, cameras) if uses_map else None,
        noise=jax.random.normal(key, clean.shape, clean.dtype),
        context=request.context[None],
        negative_context=request.negative_context[None],
        num_references=len(references),
        opening=opening,
    )


def encode_references(model: Model, params: Params, frames: UInt8[Array, "*b k h w 3"]) -> Float[Array, "_ k p q c"]:
    """Each reference frame alone, as one latent frame; for one clip, or for a batch of them."""
    count = frames.shape[-4]
    alone = model.encode(params, to_signed(frames.reshape(-1, 1, *frames.shape[-3:])))
    return alone.reshape(-1, count, *alone.shape[2:])


def encode_control(
    model: Model, params: Params, projection: Projection, point_map: PointMap, cameras: Cameras
) -> Float[Array, "1 f p q c"]:
    """Latents of the map's projection beside those of the hole mask; holes are black, as released, or filled."""
    color = fill(model, params, projection, point_map, cameras)
    return encode_shown(model, params, color[None], projection.coverage[None])


def encode_shown(
    model: Model, params: Params, color: Float[Array, "b t h w 3"], coverage: Float[Array, "b t h w"]
) -> Float[Array, "b f p q c"]:
    """Latents of pictures in [0, 1] beside latents of the hole mask (1 = hole; spec 2.5)."""
    holes = jnp.broadcast_to(1.0 - coverage[..., None], color.shape)
    both = jnp.stack([color * 2.0 - 1.0, holes], axis=1)  # a clip's two stay on its device
    latents = model.encode(params, both.reshape(-1, *color.shape[1:]))
    latents = latents.reshape(-1, 2, *latents.shape[1:])
    return jnp.concatenate([latents[:, 0], latents[:, 1]], axis=-1)


def fill(
    model: Model, params: Params, projection: Projection, point_map: PointMap, cameras: Cameras
) -> Float[Array, "f h w 3"]:
    """The projection in [0, 1] with what `Experiment.control_fill` puts into its holes."""
    color, coverage = projection.color, projection.coverage
    match model.config.control_fill:
        case "black":
            return color
        case "surroundings":
            return fill_holes(color, coverage)
        case "inpainter":
            return color + (1 - coverage[..., None]) * imagine(model, params, point_map, cameras)


def imagine(model: Model, params: Params, point_map: PointMap, cameras: Cameras) -> Float[Array, "f h w 3"]:
    """What the given points (the photo's, the user's) let the views be thought to show, in [0, 1].

    What earlier clips invented is left out: guesses made from guesses fade to grey.
    """
    given = (point_map.provenance == memory.OBSERVED) | (point_map.provenance == memory.EDIT)
    seen = look_around(model, point_map.positions, point_map.colors, point_map.valid & given, cameras)
    return model.inpaint(params, *seen)


def look_around(
    model: Model,
    positions: Float[Array, "n 3"],
    colors: Float[Array, "n 3"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
) -> tuple[Float[Array, "v h w 3"], Float[Array, "v h w"], Float[Array, "v r c 5"], Float[Array, "v y x 2"]]:
    """What the inpainter is shown of points: colour and coverage of v views, the panoramas around them, and where in
    these the pixels of the view, shrunk to the inpainter's scale, look."""
    config, clip = model.config.inpainter, model.config.clip
    assert config is not None
    seen = splat.render_in_parts(
        positions, colors, valid, cameras, height=clip.height, width=clip.width, config=model.config.splat
    )
    panorama = memory.panoramas(positions, colors, valid, cameras, config.panorama)
    places = memory.places(cameras, clip.height // config.scale, clip.width // config.scale, config.panorama)
    return seen.color, seen.coverage, panorama, places


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

    Given latent frames are told timestep 0 (spec 2.5). Guidance changes only the text. A LoRA was trained on continuing
    clips and acts in those alone.
    """

    def predict(context: Array) -> diffusion.Denoiser:
        def call(latents, timestep):
            timesteps = diffusion.frame_timesteps(timestep, conditions.is_clean)
            return model.denoise(
                params, latents, jnp.broadcast_to(timesteps, (len(latents), *timesteps.shape)), context,
                control=conditions.control,
                control_scale=model.config.control_scale,
                num_references=conditions.num_references,
                lora=None if conditions.opening else params.get("lora"),
            )  # fmt: skip

        return call

    return diffusion.guided(predict(conditions.context), predict(conditions.negative_context), model.config.guidance)


def decode(model: Model, params: Params, latents: Float[Array, "1 f p q c"], num_new: int) -> UInt8[Array, "t h w 3"]:
    """The last `num_new` frames; those before are the history, which gives them their past."""
    return to_bytes(model.decode(params, latents)[0, -num_new:])


def plain_color(seen: Projection) -> Float[Array, "v h w 3"]:
    """The projection's colours, not premultiplied by coverage."""
    return seen.color / jnp.maximum(seen.coverage, 1e-3)[..., None]


def keyframes(model: Model, num_frames: int) -> Int[Array, " k"]:
    """Numbers, within a clip, of the frames that are mapped."""
    return jnp.array(mapper.keyframe_numbers(num_frames, model.config.memory.map_stride))


def carve(model: Model, point_map: PointMap, mapped: mapper.MapUpdate, frames: Float[Array, "k h w 3"]) -> PointMap:
    """The map without what the keyframes see through; nothing is carved where cameras are merely trusted."""
    config, tracked = model.config.mapper, model.config.mapper.tracking
    if tracked is None:
        return point_map
    views = mapper.seen_through(
        point_map.positions, point_map.colors, mapped.cameras, mapped.depth, mapped.static, frames,
        depth_tolerance=tracked.carve_tolerance, color_tolerance=config.motion_color_tolerance,
    )  # fmt: skip
    generated = (point_map.provenance > memory.OBSERVED) & (point_map.provenance < memory.EDIT)
    needed = jnp.where(generated, tracked.carve_views, tracked.carve_observed_views)
    return memory.remove(point_map, point_map.valid & (views >= needed))


def remember(
    model: Model,
    world: World,
    request: ClipRequest,
    frames: UInt8[Array, "t h w 3"],
    mapped: mapper.MapUpdate,
    path: Cameras,
    references: Int[Array, " K"],
    *,
    opening: bool,
) -> World:
    """The world after a clip: static points in the map, frames in the bank and in the history.

    A point that would hide what a reference or the oldest frame of the bank (the photo) saw is refused.
    """
    config, stored = model.config.clip, model.config.memory
    chosen = keyframes(model, len(frames))
    positions, colors, weights, valid, brought_by = mapper.select_points(
        mapped, to_unit(frames[chosen]), stored.pixel_stride
    )
    witnesses = world.frame_bank.cameras[jnp.maximum(jnp.append(references, 0), 0)]
    seen = project(model, world, witnesses).depth
    valid &= ~mapper.blocks_views(positions, witnesses, seen, model.config.mapper.free_tolerance)
    point_map = memory.insert(
        carve(model, world.point_map, mapped, to_unit(frames[chosen])), positions, colors, weights, valid,
        provenance=world.clip_index + 1,
        voxel_size=stored.voxel_size,
        keyframes=world.frame_count + chosen[brought_by],
    )  # fmt: skip
    # A frame becomes a reference when it has left the history; until then the transformer is given it anyway.
    n, stride = config.history_frames, config.reference_stride
    past = frames if opening else jnp.concatenate([world.history, frames])
    cameras = path if opening else Cameras.concatenate([world.history_cameras, path])
    leaving = slice(stride - 1, len(past) - n, stride)
    return dataclasses.replace(
        world,
        point_map=point_map,
        frame_bank=memory.remember(world.frame_bank, past[leaving], cameras[leaving], world.clip_index + 1),
        history=jnp.concatenate([world.history, frames])[-n:],
        history_cameras=Cameras.concatenate([world.history_cameras, path])[-n:],
        clip_index=world.clip_index + 1,
        frame_count=world.frame_count + len(frames),
        path_from_map=tracking.path_from_map(request.cameras[-1], path[-1]),
    )
