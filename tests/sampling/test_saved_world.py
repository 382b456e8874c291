"""Worlds that were saved before an array existed still open, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from spatia_jax.config import load_experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.sampling.saved_world import load_world, save_world
from spatia_jax.world import new_world

CONFIG = load_experiment(Path(__file__).resolve().parent.parent / "configs" / "micro.py")


def saved_without(folder, name):
    world = new_world(Model(CONFIG), jax.random.key(0))
    save_world(folder, world, CONFIG)
    arrays = dict(np.load(folder / "arrays.npz"))
    del arrays[name]
    np.savez(folder / "arrays.npz", **arrays)
    return world


def test_a_world_without_path_correction_opens_with_none(tmp_path):
    template = saved_without(tmp_path / "world", "path_from_map")
    opened = load_world(tmp_path / "world", template, CONFIG)
    np.testing.assert_array_equal(opened.path_from_map, np.eye(3, 4))


def test_a_world_without_anything_else_is_refused(tmp_path):
    template = saved_without(tmp_path / "world", "frame_count")
    with pytest.raises(InputError, match="lacks the arrays frame_count"):
        load_world(tmp_path / "world", template, CONFIG)
