import av
import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.io import read_video, write_video


def _moving_ramp(t, h, w):
    rows, columns = np.mgrid[0:h, 0:w]
    frames = [np.stack([columns + 3 * i, rows, np.full_like(rows, 20 * i)], -1) for i in range(t)]
    return (np.stack(frames) % 256).astype(np.uint8)


def test_round_trip_keeps_pictures_number_and_rate(tmp_path):
    frames = _moving_ramp(9, 96, 160)
    write_video(tmp_path / "v.mp4", frames, fps=12)
    read, fps = read_video(tmp_path / "v.mp4")
    assert read.shape == frames.shape
    assert fps == pytest.approx(12)
    error = np.mean((read.astype(float) - frames) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).min() > 35


def test_pure_colours_survive_the_colour_space(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    write_video(tmp_path / "v.mp4", frames, fps=24, crf=4)
    read, _ = read_video(tmp_path / "v.mp4")
    assert np.abs(read[:, 8:-8, 8:-8].astype(int) - colours[:, None, None]).max() <= 6


def test_odd_sizes_gain_one_repeated_line(tmp_path):
    write_video(tmp_path / "v.mp4", _moving_ramp(2, 33, 47), fps=29.97)
    read, fps = read_video(tmp_path / "v.mp4")
    assert read.shape == (2, 34, 48, 3)
    assert fps == pytest.approx(29.97)


def test_failure_keeps_the_old_video(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="at least one frame"):
        write_video(path, np.zeros((0, 4, 4, 3), np.uint8), fps=12)

    def broken_encoder(array, format):
        raise RuntimeError("the encoder died")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", broken_encoder)
    with pytest.raises(RuntimeError, match="the encoder died"):
        write_video(path, np.zeros((2, 4, 4, 3), np.uint8), fps=12)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_unreadable_video_is_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    for name, message in [("missing.mp4", "no such video"), ("text.mp4", "cannot be read as a video")]:
        with pytest.raises(InputError, match=message):
            read_video(tmp_path / name)
