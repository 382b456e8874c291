"""What passes between the clips of a rollout, and between the stages of a clip: plain pytrees."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from spatia_jax.cameras import Cameras
from spatia_jax.memory import FrameBank, PointMap
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
        path_from_map: [3, 4], from the map's coordinates into those in which paths are commanded: the identity until a
            mapper finds the camera elsewhere than it was sent.
    """

    point_map: PointMap
    frame_bank: FrameBank
    history: Array
    history_cameras: Cameras
    key: Array
    clip_index: Array
    frame_count: Array
    path_from_map: Array


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
        latents: [f, p, q, c] of the t frames alone; those of all clips, one after another, are one video.
        report: scalars of the mapper.
    """

    frames: Array
    projection: Projection
    references: Array
    latents: Array
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
        num_references, opening: static.
    """

    clean: Array
    is_clean: Array
    control: Array | None
    noise: Array
    context: Array
    negative_context: Array
    num_references: int = field(metadata={"static": True})
    opening: bool = field(metadata={"static": True})
