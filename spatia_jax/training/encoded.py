"""Latents and text features kept in the records of a data set: encoded once, by whoever prepares it, on any number of
machines (`python -m spatia_jax.data prepare --encode`).

One opening and one continuing clip of every record, as `training.examples` cuts and encodes them. What it costs: a
record of the released shape grows by 55 MB, and is then good for one config and one autoencoder only.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence as Source
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.text import Tokenizer
from spatia_jax.training.examples import KINDS, as_sequence, empty_prompt, make_encoder, start_of
from spatia_jax.weights.bundle import check_weights, load_network

_TEXT = ("context", "empty_context")


@dataclass(frozen=True)
class EncodeClips:
    """Adds latents and text features to a record; weights are loaded once in every process that calls it."""

    experiment: Experiment
    weights: Path

    def check(self) -> None:
        """InputError if weights or the tokenizer are missing or do not fit."""
        Tokenizer.load(self.weights)
        check_weights(Model(self.experiment), self.weights, _networks(self.experiment))

    def __str__(self) -> str:
        return f"latents of {self.experiment.name}, {self.weights}"

    def __call__(self, record: dict) -> dict[str, np.ndarray]:
        """`opening_video`, `opening_control`, `continuing_...` and `..._references` in float16; `context` and
        `empty_context` [l, d], the text encoder's features of the caption and of an empty one."""
        tools, clip = _tools(self), self.experiment.clip
        number, sequence = zlib.crc32(record["name"].encode()), as_sequence(record)
        features: dict[str, np.ndarray] = {}
        for kind, encode in tools.encoders.items():
            start = start_of(kind, number, len(record["frames"]), clip)
            row = encode(tools.params, sequence, start, jax.random.fold_in(jax.random.key(11), number))
            features |= {f"{kind}_{name}": np.asarray(value) for name, value in row.items()}
        ids, mask = tools.tokenizer.encode([record["caption"], ""], clip.text_length)
        context = np.asarray(tools.embed(tools.params, ids, mask), np.float16)
        return features | dict(zip(_TEXT, context, strict=True))


def _networks(experiment: Experiment) -> tuple[str, ...]:
    return ("autoencoder", "text_encoder", *(("inpainter",) if experiment.inpainter else ()))


@dataclass(frozen=True)
class _Tools:
    params: dict
    tokenizer: Tokenizer
    encoders: dict[str, Any]
    embed: Any


@functools.lru_cache(maxsize=1)
def _tools(settings: EncodeClips) -> _Tools:
    model = Model(settings.experiment)
    params = {name: load_network(model, settings.weights, name) for name in _networks(settings.experiment)}
    encoders = {kind: make_encoder(model, kind) for kind in KINDS}
    return _Tools(params, Tokenizer.load(settings.weights), encoders, jax.jit(model.embed_text))


class EncodedClips:
    """Random access to the latents of one kind in records that have them.

    Args:
        features: take the text features too, for a text encoder that is not trained.
    """

    def __init__(self, model: Model, source: Source[dict], tokenizer: Tokenizer, kind: str, features: bool):
        self.source, self.tokenizer, self.kind = source, tokenizer, kind
        self.length, self.features = model.config.clip.text_length, features
        self.empty = empty_prompt(tokenizer, self.length)
        clip, time = model.config.clip, model.config.autoencoder.time_factor
        frames = clip.opening_frames if kind == "opening" else clip.continuing_frames
        held, expected = len(source[0][f"{kind}_video"]), 1 + (frames - 1) // time
        if held != expected:
            raise InputError(
                f"the data set has {kind} clips of {held} latent frames, this config needs {expected}; prepare it "
                'with this config, or train with training.latents = "on_the_fly"'
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, prefix = self.source[index], f"{self.kind}_"
        row = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
        if self.features:
            return row | {name: record[name] for name in _TEXT}
        ids, mask = self.tokenizer.encode([record["caption"]], self.length)
        return row | {"ids": ids[0], "mask": mask[0], **self.empty}


def is_encoded(source: Source[dict]) -> bool:
    """Whether the records have latents."""
    return "opening_video" in source[0]
