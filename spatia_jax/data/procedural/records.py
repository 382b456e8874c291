"""Posed RGB-D sequences of the procedural world: record i is a function of the config and i alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from spatia_jax.data.procedural.captions import caption
from spatia_jax.data.procedural.paths import FRAMES_PER_SECOND, sample_path
from spatia_jax.data.procedural.render import render
from spatia_jax.data.procedural.scene import sample_scene
from spatia_jax.errors import InputError

HELD_OUT = 1_000_000  # seeds from here on are never trained on
_KINDS = (
    "wander", "there_and_back", "wander", "there_and_back", "pan",
    "wander", "there_and_back", "orbit", "wander", "dolly",
)  # fmt: skip


@dataclass(frozen=True)
class ProceduralConfig:
    """A data set of sequences.

    Attributes:
        scenes: how many, one sequence each.
        frames: length of a sequence, at 12 a second.
        height, width: pixels.
        first_seed: of the first scene; `HELD_OUT` and above are for evaluation.
    """

    scenes: int = 1200
    frames: int = 41
    height: int = 128
    width: int = 224
    first_seed: int = 0

    def __post_init__(self):
        for name in ("scenes", "frames", "height", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"procedural.{name} is {getattr(self, name)}; it must be at least 1")


def make_record(config: ProceduralConfig, index: int, kind: str | None = None) -> dict:
    """Sequence `index` as arrays.

    Args:
        kind: of camera path; by default the kinds take turns.

    Returns: frames [t, h, w, 3] uint8, depth [t, h, w] float16 metres, moving [t, h, w] bool, cam_from_world
        [t, 3, 4], intrinsics [t, 4], caption (str), seed (int).
    """
    seed = config.first_seed + index
    scene = sample_scene(seed)
    cameras = sample_path(seed, scene, config.frames, kind or _KINDS[seed % len(_KINDS)])
    times = jnp.arange(config.frames) / FRAMES_PER_SECOND
    seen = render(scene, cameras, times, config.height, config.width)
    return {
        "frames": np.asarray(seen.color),
        "depth": np.asarray(seen.depth, np.float16),
        "moving": np.asarray(seen.moving),
        "cam_from_world": np.asarray(cameras.cam_from_world),
        "intrinsics": np.asarray(cameras.intrinsics),
        "caption": caption(scene),
        "seed": seed,
    }


class ProceduralSource(Sequence):
    """Random access to records that are rendered when asked for: the world without files."""

    def __init__(self, config: ProceduralConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.scenes

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return make_record(self.config, int(index))
