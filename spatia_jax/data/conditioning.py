"""From a posed RGB-D sequence to what the generator is shown of it: a target clip, the map's projection, references.

Follows the paper's split of a training video (section 3.1, spec 1.2 to 1.4): target clip, preceding clip, and the
candidates before them, of which the scene's points are made and from which references are retrieved. It uses the same
point map, renderer and retrieval as the loop in `world.py`, so that training sees what sampling will show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spatia_jax import memory, splat
from spatia_jax.cameras import Cameras
from spatia_jax.memory import OBSERVED
from spatia_jax.splat import Projection, SplatConfig

_KEEP, _SCALE = range(2)  # purposes folded into the key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sequence:
    """A posed RGB-D video: t views.

    Attributes:
        frames: [t, h, w, 3] uint8.
        depth: [t, h, w] metres.
        moving: [t, h, w] bool, pixels of things that move; they stay out of the map.
        cameras: Cameras [t].
        overlap: [t, t] 3D-IoU of what the views see, where it was found before (prepared videos); else None.
    """

    frames: Array
    depth: Array
    moving: Array
    cameras: Cameras
    overlap: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cut:
    """One training clip of a sequence, with the past that it may know of.

    Attributes:
        clip: n views, history and new frames.
        past: p earlier views, of which the point map is made and from which references are retrieved.
        in_map: [p] bool, which of them come before the first new frame and can enter the map; the first one always is.
        in_bank: [p] bool, which come before the history and can be references; None in an opening clip, which has none.
        overlap: [n, p] 3D-IoU of the clip's views and the past ones, or None.
    """

    clip: Sequence
    past: Sequence
    in_map: Array | np.ndarray
    in_bank: Array | np.ndarray | None
    overlap: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Example:
    """What the generator is trained on, before encoding.

    Attributes:
        video: [n, h, w, 3] uint8, history and new frames.
        projection: the map in the same n views.
        references: [k, h, w, 3] uint8; where nothing was found, the oldest history frame.
        point_map: what the projection shows; cameras: Cameras [n] of the views.
    """

    video: Array
    projection: Projection
    references: Array
    point_map: memory.PointMap
    cameras: Cameras


@dataclass(frozen=True)
class ConditioningConfig:
    """How a training example's map is made.

    Attributes:
        map_stride: every n-th past frame can enter the map.
        keep: probability that such a frame does (the first one always does), so that holes vary.
        depth_noise: standard deviation of a factor on the depth of each frame but the first: the mapper is not exact.
    """

    map_stride: int = 4
    keep: float = 0.7
    depth_noise: float = 0.005


def cut(
    sequence: Sequence, start: Int[Array, ""] | int, *, num_history: int, num_new: int, map_stride: int, opening: bool
) -> Cut:
    """The clip whose first new frame is `start` (>= num_history); of JAX's arrays or, for a data pipeline, numpy's.

    Args:
        start: may be traced, so that one compiled function serves all positions.
        opening: only the first view is known, and there are no references.
    """
    views = start - num_history + np.arange(num_history + num_new)
    past = np.arange(0, 1 if opening else len(sequence.frames), map_stride)

    seen = replace(sequence, overlap=None)

    def take(numbers: Array | np.ndarray) -> Sequence:
        return jax.tree.map(lambda leaf: leaf[numbers], seen)

    if opening:
        return Cut(take(views), take(past), past < start, None)
    overlap = None if sequence.overlap is None else sequence.overlap[views][:, past]
    return Cut(take(views), take(past), past < start, past < start - num_history, overlap)


def condition(
    given: Cut,
    key: Array,
    *,
    num_references: int,
    target_stride: int,
    config: ConditioningConfig,
    memory_config,
    splat_config: SplatConfig,
) -> Example:
    """The example that a cut makes.

    Args:
        key: decides which past frames enter the map.
        memory_config: a `MemoryConfig` (capacity, voxel size, retrieval).
    """
    clip, cameras = given.clip, given.clip.cameras
    height, width = clip.frames.shape[1:3]
    point_map = map_past(given, key, config, memory_config)
    projection = splat.render(
        point_map.positions, point_map.colors, point_map.valid, cameras,
        height=height, width=width, config=splat_config,
    )  # fmt: skip
    if given.in_bank is None:
        return Example(clip.frames, projection, clip.frames[:0], point_map, cameras)
    strategy = memory_config.retrieval.strategy
    if given.overlap is not None and isinstance(strategy, memory.VoxelIoU):
        targets, available = jnp.asarray(given.overlap)[::target_stride], jnp.asarray(given.in_bank)
        slots, _, found = memory.retrieve_by_overlap(targets, available, strategy.threshold, num_references)
    else:
        slot = jnp.where(given.in_bank, 0, -1).astype(jnp.int32)
        bank = memory.FrameBank(frames=given.past.frames, cameras=given.past.cameras, clip=slot)
        slots, _, found = memory.retrieve(
            bank, point_map, cameras[::target_stride], memory_config.retrieval,
            num_references=num_references, height=height, width=width,
        )  # fmt: skip
    references = jnp.where(found[:, None, None, None], given.past.frames[slots], clip.frames[0])
    return Example(clip.frames, projection, references, point_map, cameras)


def map_past(given: Cut, key: Array, config: ConditioningConfig, memory_config) -> memory.PointMap:
    """The point map of the past: the first view observed whole, the others with a slightly wrong depth."""
    past, count = given.past, len(given.in_map)
    kept = jax.random.bernoulli(jax.random.fold_in(key, _KEEP), config.keep, (count,))
    kept = jnp.asarray(given.in_map & kept).at[0].set(True)
    scale = 1.0 + config.depth_noise * jax.random.normal(jax.random.fold_in(key, _SCALE), (count,))
    depth = past.depth * scale.at[0].set(1.0)[:, None, None]
    usable = ~past.moving & kept[:, None, None]
    colors = past.frames.astype(jnp.float32) / 255.0
    first, rest = slice(0, 1), slice(1, None)

    def insert(point_map: memory.PointMap, views: slice, provenance: int, stride: int) -> memory.PointMap:
        points = jax.vmap(memory.from_depth)(colors[views], depth[views], past.cameras[views], usable[views])
        return memory.insert(
            point_map, *(_thinned(leaf, depth.shape[1:], stride) for leaf in points),
            provenance=provenance, voxel_size=memory_config.voxel_size,
        )  # fmt: skip

    point_map = insert(memory.empty(memory_config.capacity), first, OBSERVED, 1)
    return insert(point_map, rest, 1, memory_config.pixel_stride) if count > 1 else point_map


def _thinned(points: Float[Array, "f n *c"], size: tuple[int, ...], stride: int) -> Array:
    """Every `stride`-th pixel in both directions of views of so many pixels, in one row, as the mapper takes them."""
    kept = points.reshape(-1, *size, *points.shape[2:])[:, ::stride, ::stride]
    return kept.reshape(-1, *points.shape[2:])
