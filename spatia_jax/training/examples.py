"""Examples for the generator, encoded once and kept on disk: encoding costs more than the tiny model's train step.

A folder of shards, `opening-00000.npz`, `continuing-00000.npz`, ..., each written atomically, so that an interrupted
build goes on where it stopped. Latents are float16: their rounding is far below the autoencoder's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import Cut, Example, Sequence, condition, cut
from spatia_jax.data.pipeline import shuffled
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed
from spatia_jax.stages import encode_control, encode_references
from spatia_jax.text import Tokenizer
from spatia_jax.training.batches import Batches

KINDS = ("opening", "continuing")


def as_sequence(record: dict) -> Sequence:
    """A record of a data set (`data.open_sequences`) as a pytree."""
    cameras = Cameras(record["cam_from_world"], record["intrinsics"])
    overlap = record["overlap"].astype(np.float32) if "overlap" in record else None
    return Sequence(record["frames"], record["depth"].astype(np.float32), record["moving"], cameras, overlap)


def cut_clip(model: Model, sequence: Sequence, start: Array | int, kind: str) -> Cut:
    """The clip of `kind` whose first new frame is `start`."""
    clip, opening = model.config.clip, kind == "opening"
    return cut(
        sequence, start,
        num_history=1 if opening else clip.history_frames,
        num_new=clip.opening_frames - 1 if opening else clip.new_frames,
        map_stride=model.config.training.conditioning.map_stride,
        opening=opening,
    )  # fmt: skip


def render_clip(model: Model, given: Cut, key: Array) -> Example:
    """Projection and references of a clip, as sampling would have them."""
    config = model.config
    return condition(
        given, key,
        num_references=config.clip.references,
        target_stride=config.clip.target_stride,
        config=config.training.conditioning,
        memory_config=config.memory,
        splat_config=config.splat,
    )  # fmt: skip


def make_encoder(model: Model, kind: str) -> Callable:
    """`encode(params, sequence, start, key) -> dict of latents` of one example; jitted."""

    def encode(params: Params, sequence: Sequence, start, key) -> dict[str, jax.Array]:
        example = render_clip(model, cut_clip(model, sequence, start, kind), key)
        latents = {
            "video": model.encode(params, to_signed(example.video)[None])[0],
            "control": encode_control(model, params, example.projection, example.point_map, example.cameras)[0],
        }
        if kind != "opening":
            latents["references"] = encode_references(model, params, example.references)[0]
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), latents)

    return jax.jit(encode)


def require_size(source: Source[dict], clip) -> None:
    """InputError unless the pictures of a data set are of the size of the config's clips."""
    height, width = source[0]["frames"].shape[1:3]
    if (height, width) != (clip.height, clip.width):
        raise InputError(
            f"the data set has frames of {width}x{height}, the config clips of {clip.width}x{clip.height}; prepare it "
            f"with --width {clip.width} --height {clip.height}, or set --clip.width {width} --clip.height {height}"
        )


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
) -> Batches:
    """Endless batches of cached latents, each of one kind; a share of `opening_share` of them are opening clips."""
    empty = empty_prompt(tokenizer, text_length)
    rows = {kind: Rows(load_examples(directory, kind), empty) for kind in kinds_of(opening_share)}
    return mixed(rows, batch_size, seed, opening_share)


def clip_batches(
    model: Model, source: Source[dict], tokenizer: Tokenizer, *, batch_size: int, seed: int, opening_share: float
) -> Batches:
    """Endless batches of raw clips, for a train step that renders and encodes them itself; else as above.

    A row is `{"clip": Cut, ids, mask [l], empty_ids, empty_mask [l]}`.
    """
    rows = {kind: Clips(model, source, tokenizer, kind) for kind in kinds_of(opening_share)}
    return mixed(rows, batch_size, seed, opening_share)


class Clips:
    """Random access to clips of one kind, cut out of posed RGB-D sequences."""

    def __init__(self, model: Model, source: Source[dict], tokenizer: Tokenizer, kind: str):
        self.model, self.source, self.tokenizer, self.kind = model, source, tokenizer, kind
        self.empty = empty_prompt(tokenizer, model.config.clip.text_length)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        start = start_of(self.kind, index, len(record["frames"]), self.model.config.clip)
        ids, mask = self.tokenizer.encode([record["caption"]], self.model.config.clip.text_length)
        clip = cut_clip(self.model, as_sequence(record), start, self.kind)
        return {"clip": clip, "ids": ids[0], "mask": mask[0], **self.empty}


def empty_prompt(tokenizer: Tokenizer, text_length: int) -> dict[str, np.ndarray]:
    """What a dropped caption is replaced by."""
    ids, mask = tokenizer.encode([""], text_length)
    return {"empty_ids": ids[0], "empty_mask": mask[0]}


def kinds_of(opening_share: float) -> tuple[str, ...]:
    """The kinds of clips of which there are any."""
    return tuple(kind for kind in KINDS if (opening_share if kind == "opening" else 1 - opening_share) > 0)


def mixed(rows: dict[str, Any], batch_size: int, seed: int, opening_share: float) -> Batches:
    """Endless batches of rows by kind."""
    shares = {"opening": opening_share, "continuing": 1.0 - opening_share}
    endless = tuple(shuffled(source, seed) for source in rows.values())
    return Batches(endless, batch_size, tuple(shares[kind] for kind in rows))
