"""Texts to contexts before anything else is loaded: the text encoder is the largest network, and is asked only once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from spatia_jax.io.atomic import atomic_write
from spatia_jax.io.manifest import sha256
from spatia_jax.model import Model
from spatia_jax.parallel import param_shardings
from spatia_jax.sampling import compiled
from spatia_jax.text import Tokenizer, clean, find_tokenizer
from spatia_jax.weights.bundle import load_network
from spatia_jax.weights.record import network_hash


def encode_texts(
    model: Model,
    weights: Path,
    texts: Iterable[str],
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    cache: Path | None = None,
) -> dict[str, Float[Array, "l d"]]:
    """The context of each text. The text encoder is loaded only if one is not in the cache, and is gone on return.

    Args:
        weights: folder with the tokenizer, and with the text encoder unless its hash is recorded and all is cached.
        mesh: of `parallel.make_mesh`, for the text encoder's parameters; None: the default device.
        dtype: of the text encoder's kernels (`weights.bundle.load_network`).
        cache: a folder with one file a text; a file that cannot be read is made anew.

    Raises:
        InputError: no tokenizer, or a text encoder that is needed and missing or does not fit.
    """
    texts = list(dict.fromkeys(texts))
    tokenizer = Tokenizer.load(weights)
    files = {} if cache is None else _cache_files(model, weights, texts, dtype, cache)
    contexts = {text: found for text, file in files.items() if (found := _read(file, model)) is not None}
    if missing := [text for text in texts if text not in contexts]:
        abstract = model.abstract_params()["text_encoder"]
        shardings = None if mesh is None else param_shardings(abstract, mesh)
        params = {"text_encoder": load_network(model, weights, "text_encoder", shardings=shardings, dtype=dtype)}
        for text in missing:
            ids, mask = tokenizer.encode([text], model.config.clip.text_length)
            contexts[text] = np.asarray(compiled.embed_text(model, params, ids, mask)[0])
            if text in files:
                _write(files[text], contexts[text])
    return {text: jnp.asarray(contexts[text]) for text in texts}


def _cache_files(model: Model, weights: Path, texts: list[str], dtype: Any, cache: Path) -> dict[str, Path]:
    """A file for each text, named by all that decides its context but the kind of machine."""
    common = {
        "weights": network_hash(weights, "text_encoder"),
        "tokenizer": sha256(find_tokenizer(weights)),
        "config": dataclasses.asdict(model.config.text_encoder),
        "dtype": str(jnp.dtype(dtype or jnp.float32)),
        "length": model.config.clip.text_length,
    }
    keys = {text: json.dumps(common | {"text": clean(text)}, sort_keys=True) for text in texts}
    return {text: cache / f"{hashlib.sha256(key.encode()).hexdigest()}.npz" for text, key in keys.items()}


def _read(file: Path, model: Model) -> np.ndarray | None:
    """The context in a cache file; None where there is none, or none that is whole (zip files have checksums)."""
    try:
        with np.load(file) as stored:
            context = stored["context"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    wanted = (model.config.clip.text_length, model.config.text_encoder.dim)
    return context if (context.shape, context.dtype) == (wanted, np.float32) else None


def _write(file: Path, context: np.ndarray) -> None:
    with atomic_write(file) as temporary:
        np.savez(temporary, context=context)
