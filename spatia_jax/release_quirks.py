"""What the released pipeline does and no one would choose: all behind `Experiment.release_compatible`.

The released weights do not need any of it; it is there to compare with frames that the release made (spec 2.3 to 2.11).

| quirk | effect |
|---|---|
| every continuing clip starts from the same noise | clips repeat each other's texture |
| the principal point is mirrored, pixels are scaled by s - 1 | nothing while it is centred; at cx = 0.6 W the projection is a fifth of a picture off |
| the map is rendered at 0.01 m + 0.005 m a clip | later projections are sparser |
| projection and hole mask are cut to 8 bits | up to 1 / 255 darker |
| any pair may become a reference, one point a pixel counts | references that share nothing with the clip |
| frames that pad a short last clip stay in the video | a still at the end |

Not repeated, because it needs the released programs: lossy video files between stages, torch's random bits, the clump of
masked points at the origin, a z-buffer for each ten million points.
"""  # noqa: E501 (a table)

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spatia_jax import memory
from spatia_jax.memory import CovisibleAssignment, PointMap, RetrievalConfig
from spatia_jax.splat import Projection, SplatConfig
from spatia_jax.state import World

RETRIEVAL = RetrievalConfig(CovisibleAssignment(min_points=-1), tolerance=1e-6)
_VOXEL, _GROWTH = 0.01, 0.005  # metres; a clip


def splat_config(config: SplatConfig) -> SplatConfig:
    """With the released projection."""
    return dataclasses.replace(config, convention="release")


def noise_key(world: World) -> Array:
    """One key for all clips."""
    return world.key


def thinned(point_map: PointMap, clip_index: Array) -> PointMap:
    """The map as it is rendered for a clip: one point for each ever larger voxel, the mean of those in it."""
    size = jnp.where(clip_index > 0, _VOXEL + _GROWTH * clip_index, _VOXEL)
    return memory.insert(
        memory.empty(point_map.capacity),
        point_map.positions, point_map.colors, point_map.weights, point_map.valid,
        provenance=0, voxel_size=size,
    )  # fmt: skip


def truncated(projection: Projection) -> Projection:
    """Colours and hole mask as 8-bit pictures hold them, rounded down."""
    bytes_ = jax.tree.map(lambda leaf: jnp.floor(leaf * 255.0) / 255.0, (projection.color, projection.coverage))
    return dataclasses.replace(projection, color=bytes_[0], coverage=bytes_[1])
