"""What the motion network is trained on: keyframes of scenes with moving things, as the mapper meets them.

A folder of shards like that of `training.examples`. Each scene is walked through clip by clip with its true frames, and
mapped as in the loop: depth is aligned to the map, and what is then known of the keyframes is kept beside the true
masks. The map grows by these, as if the network were perfect already. What is not as in the loop makes many scenes
cheap: only keyframes are rendered, since nothing else is looked at, and at half the resolution, which is what the
network sees; cameras are not found, but true up to errors of the size that finding them leaves; and their depth is the
true one, bent and blurred about as the depth network's is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from scipy.ndimage import uniform_filter, zoom

from spatia_jax import map_stage, mapper, stages
from spatia_jax.cameras import Cameras
from spatia_jax.cameras.drift import perturb
from spatia_jax.config import ClipConfig, Experiment
from spatia_jax.data.pipeline import shuffled
from spatia_jax.data.procedural import HELD_OUT, render, sample_path, sample_scene
from spatia_jax.data.procedural.paths import FRAMES_PER_SECOND
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.mapper.motion_cues import Cues, cues_of_halves
from spatia_jax.model import Model
from spatia_jax.pixels import to_unit
from spatia_jax.state import ClipRequest, World
from spatia_jax.training.batches import Batches
from spatia_jax.training.examples import Rows, load_examples
from spatia_jax.world import new_world, observe

_LEVELS = 127  # of a cue on disk, on each side of 0
# What tracking leaves (docs/mapper_loop.md): a drift from clip to clip, and every keyframe a little on its own.
_DEGREES, _PERCENT = 0.7, 4.0  # the most that a path turns away, and moves off, in a clip
_JITTER = np.array([0.005] * 3 + [np.radians(0.1)] * 3, np.float32)  # standard deviation, metres and radians
_ESTIMATED = 0.25  # share of the scenes whose first view has no depth of its own
_BENDS = 0.25  # standard deviation of the log of a depth network's errors, of a whole walk and, once more, of its parts
_PARTS = (3, 4)  # rows and columns of the picture whose errors are independent
_BLUR = 5  # pixels over which depth is blurred
_CLIPS = 3  # of a walk
_KINDS = ("there_and_back", "wander", "there_and_back", "orbit", "there_and_back", "dolly")
_FEW, _STILL_SHARE = 0.002, 0.2  # of scenes with fewer moving pixels than the former, the latter is the share kept


def pack(cues: Cues, moving: Bool[Array, "k h w"]) -> dict[str, Array]:
    """Cues and truth as bytes."""
    whole = {"differences": cues.differences, "scalars": cues.scalars}
    packed = {name: jnp.round(_LEVELS * value).astype(jnp.int8) for name, value in whole.items()}
    return packed | {"frames": jnp.round(255 * cues.frames).astype(jnp.uint8), "moving": moving}


def unpack(batch: dict[str, Array]) -> tuple[Cues, Bool[Array, "b h w"]]:
    """Inverse of `pack`, up to rounding."""
    differences, scalars = (batch[name].astype(jnp.float32) / _LEVELS for name in ("differences", "scalars"))
    return Cues(batch["frames"].astype(jnp.float32) / 255, differences, scalars), batch["moving"]


@dataclass(frozen=True)
class Walk:
    """The keyframes of whole clips of a scene.

    Attributes:
        frames: [k, h, w, 3] uint8; moving: [k, h, w] bool, what belongs to moving objects.
        depth: [k, h, w] metres.
        cameras: Cameras [k], true.
        numbers: [k] of these frames in the video.
    """

    frames: np.ndarray
    moving: np.ndarray
    depth: np.ndarray
    cameras: Cameras
    numbers: np.ndarray


def clip_bounds(clip: ClipConfig, clips: int) -> list[int]:
    """The first frame of each clip, and the end of the last one."""
    return [0, *(clip.frames_of(1 + number) for number in range(clips))]


def make_walk(config: Experiment, seed: int, clips: int = _CLIPS) -> Walk:
    """A walk through scene `seed`; its first keyframe has to be the photo."""
    clip, stride = config.clip, config.memory.map_stride
    bounds = clip_bounds(clip, clips)
    numbers = np.concatenate(
        [first + np.array(mapper.keyframe_numbers(last - first, stride)) for first, last in itertools.pairwise(bounds)]
    )
    if numbers[0]:
        raise InputError(f"clip.opening_frames - 1 ({clip.opening_frames - 1}) must be a multiple of {stride}")
    scene = sample_scene(seed)
    cameras = sample_path(seed, scene, bounds[-1], _KINDS[seed % len(_KINDS)])[jnp.asarray(numbers)]
    seen = render(scene, cameras, jnp.asarray(numbers) / FRAMES_PER_SECOND, clip.height, clip.width)
    return Walk(np.asarray(seen.color), np.asarray(seen.moving), np.asarray(seen.depth), cameras, numbers)


def halved(config: Experiment) -> Experiment:
    """An experiment whose frames have half the height and width, and whose map is as much coarser.

    Nothing is painted with it: the networks for that are there because an experiment has them.
    """
    clip, memory, autoencoder = config.clip, config.memory, config.autoencoder
    return dataclasses.replace(
        config.tracked(),
        clip=dataclasses.replace(clip, height=clip.height // 2, width=clip.width // 2),
        memory=dataclasses.replace(memory, voxel_size=2 * memory.voxel_size, capacity=memory.capacity // 4),
        splat=dataclasses.replace(config.splat, radius=1.5 * config.splat.radius),
        autoencoder=dataclasses.replace(autoencoder, patch_size=autoencoder.patch_size // 2),
        control_fill="black",
        inpainter=None,
        motion=None,
    )


class Guide:
    """Walks through scenes; every piece is compiled once.

    Args:
        config: of the experiment at its own size.
    """

    def __init__(self, config: Experiment):
        self.model = Model(halved(config))
        tracking = self.model.config.mapper.tracking
        assert tracking is not None
        self._motion = tracking.motion
        self._blank = new_world(self.model, jax.random.key(0))
        self._observe = jax.jit(lambda *view: observe(self.model, *view))
        self._step = jax.jit(self._map_clip, static_argnames="opening")

    def examples(self, walk: Walk, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Packed cues of all keyframes of a walk: k rows."""
        clip = self.model.config.clip
        clips = 1 + max(0, -(-(int(walk.numbers[-1]) + 1 - clip.opening_frames) // clip.new_frames))
        bounds = clip_bounds(clip, clips)
        degrees, percent = _DEGREES * rng.random(), _PERCENT * rng.random()
        clip_of = np.searchsorted(bounds, walk.numbers, side="right") - 1
        path = perturb(walk.cameras, clip_of, degrees, percent, int(rng.integers(2**31)))
        jitter = jnp.asarray(_JITTER * rng.standard_normal((len(path), 6), np.float32))
        path = Cameras.from_se3(jaxlie.SE3.exp(jitter) @ path.as_se3(), path.intrinsics)
        guessed = guess_depth(walk.depth, rng)
        depth = guessed[0] if rng.random() < _ESTIMATED else walk.depth[0]
        world = self._observe(self._blank, walk.frames[0], depth, walk.cameras[0], np.zeros(depth.shape, bool))
        rows = []
        for first, last in itertools.pairwise(bounds):
            # What lies between keyframes is not looked at: it is filled with copies.
            nearest = np.searchsorted(walk.numbers, np.arange(first, last))
            world, row = self._step(
                world, walk.frames[nearest], walk.moving[nearest], guessed[nearest], path[jnp.asarray(nearest)],
                opening=first == 0,
            )  # fmt: skip
            rows.append(jax.tree.map(np.asarray, row))
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _map_clip(
        self, world: World, frames: UInt8[Array, "t y x 3"], moving: Bool[Array, "t y x"],
        guessed: Float[Array, "t y x"], path: Cameras, *, opening: bool,
    ) -> tuple[World, dict[str, Array]]:  # fmt: skip
        """What `map_stage.map_tracking` does, with given cameras and the true masks, and the cues that led up to it."""
        model, nothing, chosen = self.model, jnp.zeros((0, 0)), stages.keyframes(self.model, len(frames))
        shown, cameras = to_unit(frames[chosen]), path[chosen]
        prior, seen = guessed[chosen], stages.project(model, world, cameras)
        aligned = mapper.update(
            model.config.mapper, prior, shown, cameras, seen.depth, stages.plain_color(seen)
        ).depth  # fmt: skip
        tracked, truth = map_stage.Tracked(shown, cameras, path, prior, aligned, seen), moving[chosen]
        before = map_stage.views_before(model, world)
        cues = cues_of_halves(
            self._motion, shown, aligned, cameras, stages.plain_color(seen), seen.depth,
            (seen.depth > 0).astype(jnp.float32), *before,
        )  # fmt: skip
        row = pack(cues, truth)
        mapped = map_stage.settle(model, tracked, truth)
        no_references = jnp.full((model.config.clip.references,), -1, jnp.int32)
        request = ClipRequest(path, nothing, nothing, moving)
        after = stages.remember(model, world, request, frames, mapped, tracked.path, no_references, opening=opening)
        return after, row


def guess_depth(depth: Float[np.ndarray, "k h w"], rng: np.random.Generator) -> Float[np.ndarray, "k h w"]:
    """True depth as a network might say it: off by a factor, bent differently in every frame, and without edges."""
    k, height, width = depth.shape
    blurred = uniform_filter(np.log(np.maximum(depth, 1e-2)), (0, _BLUR, _BLUR), mode="nearest")
    parts = zoom(rng.standard_normal((k, *_PARTS)), (1, height / _PARTS[0], width / _PARTS[1]), order=1)
    common = zoom(rng.standard_normal(_PARTS), (height / _PARTS[0], width / _PARTS[1]), order=1)
    bends = _BENDS * (rng.standard_normal() + 0.7 * common + 0.4 * parts)
    return np.exp(blurred + bends).astype(np.float32)


def build_motion(
    config: Experiment,
    directory: Path,
    *,
    scenes: int,
    first_seed: int = 0,
    shard_size: int = 16,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the keyframes of walks through `scenes` training scenes into shards under `directory`; see `Guide`.

    Of the scenes where next to nothing moves in sight, most are left out: these say little, and are many.
    """
    if first_seed < HELD_OUT < first_seed + scenes:
        raise InputError(
            f"seeds {first_seed}..{first_seed + scenes - 1} run into the held-out ones, from {HELD_OUT} on"
        )
    guide = Guide(config)
    directory.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, scenes, shard_size)):
        path, end = directory / f"motion-{shard:05d}.npz", min(first + shard_size, scenes)
        if path.exists():
            continue
        rows: list[dict[str, np.ndarray]] = []
        for seed in range(first_seed + first, first_seed + end):
            walk, rng = make_walk(guide.model.config, seed), np.random.default_rng([seed, 17])
            if not rows or walk.moving.mean() >= _FEW or rng.random() < _STILL_SHARE:
                rows.append(guide.examples(walk, rng))
        stacked: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        with atomic_write(path) as temporary:
            np.savez(temporary, **stacked)
        say(f"motion: {end}/{scenes} scenes")


def motion_batches(directory: Path, *, batch_size: int, seed: int) -> Batches:
    """Endless batches of packed keyframes."""
    return Batches((shuffled(Rows(load_examples(directory, "motion")), seed),), batch_size)
