"""From a posed RGB-D sequence to what the generator is shown of it: a target clip, the map's projection, references.

Follows the paper's split of a training video (section 3.1, spec 1.2 to 1.4): target clip, preceding clip, and the
candidates before them, of which the scene's points are made and from which references are retrieved. It uses the same
point map, renderer and retrieval as the loop in `world.py`, so that training sees what sampling will show.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
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
    """

    frames: Array
    depth: Array
    moving: Array
    cameras: Cameras


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


def condition(
    sequence: Sequence,
    start: Int[Array, ""] | int,
    key: Array,
    *,
    num_history: int,
    num_new: int,
    num_references: int,
    target_stride: int,
    config: ConditioningConfig,
    memory_config,
    splat_config: SplatConfig,
) -> Example:
    """The example whose first new frame is `start` (>= num_history).

    Args:
        sequence: t frames; those before `start` make the map and the frame bank.
        start: may be traced, so that one compiled function serves all positions.
        key: decides which past frames enter the map.
        memory_config: a `MemoryConfig` (capacity, voxel size, retrieval).
    """
    height, width = sequence.depth.shape[1:]
    point_map = map_past(sequence, start, key, config, memory_config)
    cameras = jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start - num_history, num_history + num_new), sequence.cameras
    )
    video = jax.lax.dynamic_slice_in_dim(sequence.frames, start - num_history, num_history + num_new)
    projection = splat.render(
        point_map.positions, point_map.colors, point_map.valid, cameras,
        height=height, width=width, config=splat_config,
    )  # fmt: skip
    if not num_references:
        return Example(video, projection, video[:0], point_map, cameras)
    past = jnp.arange(0, len(sequence.frames), config.map_stride)
    bank = memory.FrameBank(
        frames=sequence.frames[past],
        cameras=sequence.cameras[past],
        clip=jnp.where(past < start - num_history, 0, -1).astype(jnp.int32),
    )
    slots, _, found = memory.retrieve(
        bank, point_map, cameras[::target_stride], memory_config.retrieval,
        num_references=num_references, height=height, width=width,
    )  # fmt: skip
    references = jnp.where(found[:, None, None, None], bank.frames[slots], video[0])
    return Example(video, projection, references, point_map, cameras)


def map_past(sequence: Sequence, start, key: Array, config: ConditioningConfig, memory_config) -> memory.PointMap:
    """The point map of the frames before `start`: the first one observed, the others with a slightly wrong depth."""
    past = jnp.arange(0, len(sequence.frames), config.map_stride)
    kept = jax.random.bernoulli(jax.random.fold_in(key, _KEEP), config.keep, past.shape)
    kept = ((past < start) & kept).at[0].set(True)
    scale = 1.0 + config.depth_noise * jax.random.normal(jax.random.fold_in(key, _SCALE), past.shape)
    depth = sequence.depth[past] * scale.at[0].set(1.0)[:, None, None]
    usable = ~sequence.moving[past] & kept[:, None, None]
    colors = sequence.frames[past].astype(jnp.float32) / 255.0
    positions, colors, weights, valid = jax.vmap(memory.from_depth)(colors, depth, sequence.cameras[past], usable)

    def flat(leaf: Float[Array, "f n *c"]) -> Array:
        return leaf[1:].reshape(-1, *leaf.shape[2:])

    insert = memory.insert
    point_map = insert(
        memory.empty(memory_config.capacity), positions[0], colors[0], weights[0], valid[0],
        provenance=OBSERVED, voxel_size=memory_config.voxel_size,
    )  # fmt: skip
    return insert(
        point_map, flat(positions), flat(colors), flat(weights), flat(valid),
        provenance=1, voxel_size=memory_config.voxel_size,
    )  # fmt: skip
