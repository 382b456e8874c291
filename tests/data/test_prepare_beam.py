"""Beam's local runner writes the same data set as a plain run."""

from __future__ import annotations

import numpy as np
import pytest
from data import small_videos as small

from spatia_jax.data import open_sequences
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.data.videos import runner
from spatia_jax.data.videos.builder import gather
from spatia_jax.data.videos.layouts import find_videos
from spatia_jax.data.videos.preprocess import PrepareConfig
from spatia_jax.data.videos.runner import Job
from spatia_jax.errors import InputError

CONFIG = PrepareConfig(height=32, width=32, frames=4, step=4, captions=False)


def test_beam_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    small.make_videos(tmp_path / "source", ("a",))
    with pytest.raises(InputError, match="pip install 'spatia-jax\\[beam\\]'"):
        runner.run(Job("videos", CONFIG, tmp_path / "out"), find_videos(tmp_path / "source", "videos"), beam_options=[])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_beam_writes_what_a_plain_run_writes(tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is an extra: pip install -r requirements-beam.txt")
    small.make_videos(tmp_path / "source")
    (tmp_path / "source" / "b.mp4").write_bytes(b"no video")
    items = find_videos(tmp_path / "source", "videos")
    found = {}
    for name, options in (("plain", None), ("beam", [])):
        folder = tmp_path / name
        outcome = runner.run(Job("videos", CONFIG, folder), items, beam_options=options, say=lambda line: None)
        assert outcome == (["a", "test/c"], ["b"])
        assert gather(folder, options) == {"train": 2, "test": 2}
        found[name] = open_sequences(ProceduralConfig(), folder)
    for index in range(2):
        plain, beam = found["plain"][index], found["beam"][index]
        for name, value in plain.items():
            np.testing.assert_array_equal(beam[name], value)
