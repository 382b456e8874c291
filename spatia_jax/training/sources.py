"""Batches for the autoencoder and the depth network, cut out of posed RGB-D sequences.

Batch i is a function of i and the seed alone, so the step of a run says which data come next (`data.pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Source

import numpy as np

from spatia_jax.data.pipeline import shuffled
from spatia_jax.errors import InputError
from spatia_jax.training.batches import Batches


def _batches(source: Source[dict], cut: Callable, batch_size: int, seed: int) -> Batches:
    """Endless batches of `cut(record, generator)` over shuffled records."""
    return Batches((shuffled(source, seed).random_map(cut),), batch_size)


def crop_batches(source: Source[dict], *, frames: int, crop: int, batch_size: int, seed: int) -> Batches:
    """Batches `{"frames": [b, frames, crop, crop, 3] uint8}` of random cuts in time and space, some mirrored."""

    def cut(record: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        video = record["frames"]
        length, height, width = video.shape[:3]
        if frames > length or crop > min(height, width):
            raise InputError(f"crops of {frames} x {crop} x {crop} do not fit videos of {length} x {height} x {width}")
        t, y, x = (
            rng.integers(0, whole - part + 1) for whole, part in ((length, frames), (height, crop), (width, crop))
        )
        piece = video[t : t + frames, y : y + crop, x : x + crop]
        return {"frames": np.ascontiguousarray(piece[:, :, ::-1] if rng.integers(2) else piece)}

    return _batches(source, cut, batch_size, seed)


def depth_batches(source: Source[dict], *, batch_size: int, seed: int) -> Batches:
    """Batches `{"frames": [b, h, w, 3] uint8, "depth": [b, h, w] metres}` of single frames, some mirrored."""

    def cut(record: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        t = rng.integers(len(record["frames"]))
        flip = slice(None, None, -1 if rng.integers(2) else 1)
        return {
            "frames": np.ascontiguousarray(record["frames"][t][:, flip]),
            "depth": np.asarray(record["depth"][t][:, flip], np.float32),
        }

    return _batches(source, cut, batch_size, seed)
