"""The micro experiment with random weights, on disk and in memory, and a photo with depth to start from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import caption, make_record, sample_scene
from spatia_jax.io.images import write_png
from spatia_jax.model import Model
from spatia_jax.text import Tokenizer, train_tokenizer
from spatia_jax.weights.store import save_params

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"


@pytest.fixture(scope="session")
def micro(tmp_path_factory) -> SimpleNamespace:
    """Model, params, tokenizer, and the files that sample.py would be given."""
    folder = tmp_path_factory.mktemp("micro")
    model = Model(load_experiment(CONFIG))
    params = {}
    for number, name in enumerate(model.abstract_params()):
        fresh = jax.jit(lambda key, name=name: model.init(name, key))(jax.random.key(number, impl="rbg"))
        # Zero-initialised layers would hide what flows through them.
        rng = np.random.default_rng(number)
        params[name] = jax.tree.map(lambda x, rng=rng: x + 0.05 * rng.standard_normal(x.shape, np.float32), fresh)
        save_params(folder / "weights" / f"{name}.safetensors", params[name])
    train_tokenizer([caption(sample_scene(0))], 300, folder / "weights" / "tokenizer.json")
    record = make_record(model.config.procedural, 1, "there_and_back")
    write_png(folder / "photo.png", record["frames"][0])
    write_png(folder / "depth.png", np.round(np.float32(record["depth"][0]) * 1000).astype(np.uint16))
    return SimpleNamespace(
        folder=folder,
        config_file=CONFIG,
        weights=folder / "weights",
        photo=folder / "photo.png",
        depth=folder / "depth.png",
        record=record,
        model=model,
        params=params,
        tokenizer=Tokenizer.load(folder / "weights"),
    )
