"""Examples for the generator, encoded once and kept on disk: encoding costs more than the tiny model's train step.

A folder of shards, `opening-00000.npz`, `continuing-00000.npz`, ..., each written atomically, so that an interrupted
build goes on where it stopped. Latents are float16: their rounding is far below the autoencoder's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import ConditioningConfig, Sequence, condition
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed
from spatia_jax.stages import encode_control, encode_references
from spatia_jax.text import Tokenizer

KINDS = ("opening", "continuing")


def as_sequence(record: dict) -> Sequence:
    """A record of the procedural data set as a pytree."""
    cameras = Cameras(jnp.asarray(record["cam_from_world"]), jnp.asarray(record["intrinsics"]))
    return Sequence(record["frames"], record["depth"].astype(np.float32), record["moving"], cameras)


def make_encoder(model: Model, kind: str) -> Callable:
    """`encode(params, sequence, start, key) -> dict of latents` of one example; jitted."""
    clip, opening = model.config.clip, kind == "opening"

    def encode(params: Params, sequence: Sequence, start, key) -> dict[str, jax.Array]:
        example = condition(
            sequence, start, key,
            num_history=1 if opening else clip.history_frames,
            num_new=clip.opening_frames - 1 if opening else clip.new_frames,
            num_references=0 if opening else clip.references,
            target_stride=clip.target_stride,
            config=ConditioningConfig(),
            memory_config=model.config.memory,
            splat_config=model.config.splat,
        )  # fmt: skip
        latents = {
            "video": model.encode(params, to_signed(example.video)[None])[0],
            "control": encode_control(model, params, example.projection, example.point_map, example.cameras)[0],
        }
        if not opening:
            latents["references"] = encode_references(model, params, example.references)[0]
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), latents)

    return jax.jit(encode)


def start_of(kind: str, index: int, num_frames: int, clip) -> int:
    """The first new frame of example `index`: opening clips start at the first frame, continuing ones anywhere."""
    if kind == "opening":
        return 1
    first, last = clip.opening_frames, num_frames - clip.new_frames
    if last < first:
        raise InputError(
            f"sequences of {num_frames} frames are too short for continuing clips; they need "
            f"{clip.opening_frames + clip.new_frames}"
        )
    return int(np.random.default_rng([index, 7]).integers(first, last + 1))


def build_examples(
    model: Model,
    params: Params,
    source: Source[dict],
    tokenizer: Tokenizer,
    directory: Path,
    kind: str,
    *,
    shard_size: int = 32,
    say: Callable[[str], None] = print,
) -> None:
    """Encodes one example of `kind` from every sequence of `source` into shards under `directory`."""
    encode = make_encoder(model, kind)
    directory.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, len(source), shard_size)):
        path = directory / f"{kind}-{shard:05d}.npz"
        if path.exists():
            continue
        rows = []
        for index in range(first, min(first + shard_size, len(source))):
            record = source[index]
            start = start_of(kind, index, len(record["frames"]), model.config.clip)
            row = encode(params, as_sequence(record), start, jax.random.fold_in(jax.random.key(11), index))
            ids, mask = tokenizer.encode([record["caption"]], model.config.clip.text_length)
            rows.append(jax.tree.map(np.asarray, row) | {"ids": ids[0], "mask": mask[0]})
        with atomic_write(path) as temporary:
            stacked: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            np.savez(temporary, **stacked)
        say(f"{kind}: {min(first + shard_size, len(source))}/{len(source)} examples")


def load_examples(directory: Path, kind: str) -> dict[str, np.ndarray]:
    """All examples of a kind, as arrays with a leading axis."""
    shards = sorted(directory.glob(f"{kind}-*.npz"))
    if not shards:
        raise InputError(f"no {kind} examples in {directory}; train.py builds them from a data set (--data)")
    loaded = [dict(np.load(shard)) for shard in shards]
    return {name: np.concatenate([shard[name] for shard in loaded]) for name in loaded[0]}


class Rows:
    """Random access to stacked arrays."""

    def __init__(self, arrays: dict[str, np.ndarray], constants: dict[str, np.ndarray] | None = None):
        self.arrays, self.constants = arrays, constants or {}

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.arrays.items()} | self.constants


def example_batches(
    directory: Path, tokenizer: Tokenizer, text_length: int, *, batch_size: int, seed: int, opening_share: float
) -> grain.MapDataset:
    """Endless batches, each of one kind; a share of `opening_share` of them are opening clips."""
    ids, mask = tokenizer.encode([""], text_length)
    empty = {"empty_ids": ids[0], "empty_mask": mask[0]}

    def batches(kind: str) -> grain.MapDataset:
        rows = grain.MapDataset.source(Rows(load_examples(directory, kind), empty))
        return rows.seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)

    if opening_share >= 1.0:
        return batches("opening")
    return grain.MapDataset.mix(
        [batches("opening"), batches("continuing")], weights=[opening_share, 1.0 - opening_share]
    )
