"""Files of the procedural world hold what was rendered, and batches come in an order that can be taken up again."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from spatia_jax.data import open_sequences, sequence_batches
from spatia_jax.data.procedural import HELD_OUT, ProceduralConfig, ProceduralSource, make_record
from spatia_jax.errors import InputError

CONFIG = ProceduralConfig(scenes=5, frames=3, height=32, width=56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


@pytest.fixture(scope="module")
def train(folder):
    return open_sequences(CONFIG, folder)


def _assert_same(record, expected):
    assert record.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(record[name], value, err_msg=name)
        assert np.asarray(record[name]).dtype == np.asarray(value).dtype, name


def test_files_hold_what_was_rendered_without_tensorflow(train):
    assert len(train) == CONFIG.scenes
    for index in range(len(train)):
        record = train[index]
        _assert_same(record, make_record(CONFIG, record["seed"]))
    assert "tensorflow" not in sys.modules


def test_prepared_files_are_used_again(train, folder):
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.array_record*")}
    again = open_sequences(CONFIG, folder)
    _assert_same(again[2], train[2])
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*.array_record*")}


def test_held_out_splits_share_no_scene_with_training(train, folder):
    seeds = {
        split: {record["seed"] for record in open_sequences(CONFIG, folder, split)} for split in ("validation", "test")
    }
    assert min(seeds["validation"] | seeds["test"]) >= HELD_OUT
    assert not seeds["validation"] & seeds["test"]
    assert {train[index]["seed"] for index in range(len(train))} == set(range(CONFIG.scenes))
    with pytest.raises(InputError, match="held-out"):
        open_sequences(replace(CONFIG, first_seed=HELD_OUT - 2), folder)


def test_rendering_on_the_fly_gives_the_same_records(train):
    source = ProceduralSource(CONFIG)
    assert len(source) == len(train)
    _assert_same(train[3], source[train[3]["seed"]])
    with pytest.raises(IndexError):
        source[CONFIG.scenes]


def test_batches_resume_in_the_same_order(train):
    batches = sequence_batches(train, batch_size=2, seed=7, keys=("seed", "frames"))
    iterator = iter(batches.to_iter_dataset())
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)["seed"] for _ in range(4)]
    resumed = iter(sequence_batches(train, batch_size=2, seed=7, keys=("seed", "frames")).to_iter_dataset())
    resumed.set_state(state)
    np.testing.assert_array_equal([next(resumed)["seed"] for _ in range(4)], expected)
    np.testing.assert_array_equal([batches[step]["seed"] for step in range(3, 7)], expected)
    assert batches[0]["frames"].shape == (2, 3, 32, 56, 3)


def test_an_epoch_sees_every_scene_once_and_epochs_differ(train):
    batches = sequence_batches(train, batch_size=1, seed=0, keys=("seed",))
    first, second = ([int(batches[epoch * 5 + i]["seed"][0]) for i in range(5)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(5))
    assert first != second
