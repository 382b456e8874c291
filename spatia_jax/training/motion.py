"""What the motion network is trained on: keyframes of scenes with moving things, as the mapper meets them.

A folder of shards like that of `training.examples`. Each scene is walked through clip by clip with its true frames, and
mapped as in the loop: the depth network's depth is aligned to the map, and what is then known of the keyframes is kept
beside the true masks. The map grows by these, as if the network were perfect already. One thing is not as in the loop:
cameras are not found, which would take most of the time, but true up to errors of the size that finding them leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Bool, UInt8

from spatia_jax import map_stage, mapper, stages
from spatia_jax.cameras import Cameras
from spatia_jax.cameras.drift import perturb
from spatia_jax.data.conditioning import Sequence
from spatia_jax.data.pipeline import shuffled
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.mapper.motion_cues import Cues
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed, to_unit
from spatia_jax.state import ClipRequest, World
from spatia_jax.training.batches import Batches
from spatia_jax.training.examples import Rows, as_sequence, load_examples
from spatia_jax.world import estimate_view_depth, new_world, observe

_LEVELS = 127  # of a cue on disk, on each side of 0
# What tracking leaves (docs/mapper_loop.md): a drift from clip to clip, and every keyframe a little on its own.
_DEGREES, _PERCENT = 0.7, 4.0  # the most that a path turns away, and moves off, in a clip
_JITTER = np.array([0.005] * 3 + [np.radians(0.1)] * 3, np.float32)  # standard deviation, metres and radians
_ESTIMATED = 0.25  # share of the scenes whose first view has no depth of its own


def pack(cues: Cues, moving: Bool[Array, "k h w"]) -> dict[str, Array]:
    """Cues and truth as bytes."""
    whole = {"differences": cues.differences, "scalars": cues.scalars}
    packed = {name: jnp.round(_LEVELS * value).astype(jnp.int8) for name, value in whole.items()}
    return packed | {"frames": jnp.round(255 * cues.frames).astype(jnp.uint8), "moving": moving}


def unpack(batch: dict[str, Array]) -> tuple[Cues, Bool[Array, "b h w"]]:
    """Inverse of `pack`, up to rounding."""
    differences, scalars = (batch[name].astype(jnp.float32) / _LEVELS for name in ("differences", "scalars"))
    return Cues(batch["frames"].astype(jnp.float32) / 255, differences, scalars), batch["moving"]


class Guide:
    """Walks through scenes with a model; every piece is compiled once."""

    def __init__(self, model: Model, params: Params):
        """`params` has the depth network."""
        if model.config.mapper.tracking is None:
            raise InputError("the motion network is for tracked cameras; set mapper.tracking")
        self.model, self.params = model, params
        self._blank = new_world(model, jax.random.key(0))
        self._observe = jax.jit(lambda *view: observe(model, *view))
        self._depth = jax.jit(lambda *view: estimate_view_depth(model, *view))
        self._step = jax.jit(self._map_clip, static_argnames="opening")

    def examples(self, sequence: Sequence, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Packed cues of all keyframes of the whole clips of a sequence: k rows."""
        clip = self.model.config.clip
        bounds = [0, *range(clip.opening_frames, len(sequence.frames) + 1, clip.new_frames)]
        if len(bounds) < 2:
            raise InputError(f"sequences of {len(sequence.frames)} frames are shorter than clip.opening_frames")
        clip_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        degrees, percent = _DEGREES * rng.random(), _PERCENT * rng.random()
        path = perturb(sequence.cameras[: bounds[-1]], clip_of, degrees, percent, int(rng.integers(2**31)))
        shaken = jaxlie.SE3.exp(jnp.asarray(_JITTER * rng.standard_normal((bounds[-1], 6), np.float32))) @ path.as_se3()
        path = Cameras.from_se3(shaken, path.intrinsics)
        photo, camera, depth = sequence.frames[0], sequence.cameras[0], jnp.asarray(sequence.depth[0])
        if rng.random() < _ESTIMATED:
            depth = self._depth(self.params, self._blank, photo, camera)
        world = self._observe(self._blank, photo, depth, camera, np.zeros(depth.shape, bool))
        rows = []
        for first, last in itertools.pairwise(bounds):
            part = slice(first, last)
            world, row = self._step(
                self.params, world, sequence.frames[part], sequence.moving[part], path[part], opening=first == 0
            )
            rows.append(jax.tree.map(np.asarray, row))
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _map_clip(
        self, params: Params, world: World, frames: UInt8[Array, "t h w 3"], moving: Bool[Array, "t h w"],
        path: Cameras, *, opening: bool,
    ) -> tuple[World, dict[str, Array]]:  # fmt: skip
        """What `map_stage.map_tracking` does, with given cameras and the true masks, and the cues that led up to it."""
        model, nothing, chosen = self.model, jnp.zeros((0, 0)), stages.keyframes(self.model, len(frames))
        shown, cameras = to_unit(frames[chosen]), path[chosen]
        prior, seen = model.estimate_depth(params, to_signed(frames[chosen])), stages.project(model, world, cameras)
        aligned = mapper.update(
            model.config.mapper, prior, shown, cameras, seen.depth, stages.plain_color(seen)
        ).depth  # fmt: skip
        tracked, truth = map_stage.Tracked(shown, cameras, path, prior, aligned, seen), moving[chosen]
        row = pack(map_stage.motion_cues_of(model, world, tracked), truth)
        mapped = map_stage.settle(model, tracked, truth)
        no_references = jnp.full((model.config.clip.references,), -1, jnp.int32)
        request = ClipRequest(path, nothing, nothing, moving)
        after = stages.remember(model, world, request, frames, mapped, tracked.path, no_references, opening=opening)
        return after, row


def build_motion(
    model: Model,
    params: Params,
    source: Source[dict],
    directory: Path,
    *,
    scenes: int,
    shard_size: int = 16,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the keyframes of the first `scenes` sequences of `source` into shards under `directory`; see `Guide`."""
    guide, count = Guide(model, params), min(scenes, len(source))
    directory.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, count, shard_size)):
        path, end = directory / f"motion-{shard:05d}.npz", min(first + shard_size, count)
        if path.exists():
            continue
        rows = [
            guide.examples(as_sequence(source[index]), np.random.default_rng([index, 17]))
            for index in range(first, end)
        ]
        stacked: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        with atomic_write(path) as temporary:
            np.savez(temporary, **stacked)
        say(f"motion: {end}/{count} scenes")


def motion_batches(directory: Path, *, batch_size: int, seed: int) -> Batches:
    """Endless batches of packed keyframes."""
    return Batches((shuffled(Rows(load_examples(directory, "motion")), seed),), batch_size)
