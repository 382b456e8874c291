"""Sequences at the door: order, and one clear line for what cannot be mapped."""

from __future__ import annotations

import numpy as np
import pytest

from spatia_jax.errors import InputError
from spatia_jax.io import write_png, write_video
from spatia_jax.mapper.sequence import read_sequence


def _picture(seed: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _folder(path, names, **size):
    for seed, name in enumerate(names):
        write_png(path / name, _picture(seed, **size))
    return path


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    given = read_sequence(_folder(tmp_path, ["shot_10.png", "shot_9.png", "shot_2.png"]))
    assert given.names == ["shot_2.png", "shot_9.png", "shot_10.png"]
    np.testing.assert_array_equal(given.frames[0], _picture(2))
    assert given.cameras is None
    assert given.depth is None


def test_depth_beside_the_frames_is_read(tmp_path):
    _folder(tmp_path, ["frame-1.color.png", "frame-2.color.png"])
    for number in (1, 2):
        np.save(tmp_path / f"frame-{number}.depth.npy", np.full((16, 24), number, np.float32))
    given = read_sequence(tmp_path)
    np.testing.assert_array_equal(given.depth[:, 0, 0], [1, 2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no frames in it"),
        (["a1.png"], "one frame only"),
        (["left.png", "right.png"], "no number"),
        (["a1.png", "b1.png"], "the same number"),
    ],
)
def test_folders_that_are_no_sequence(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        read_sequence(_folder(tmp_path, names))


def test_frames_of_different_sizes(tmp_path):
    _folder(tmp_path, ["1.png"])
    write_png(tmp_path / "2.png", _picture(1, 8, 24))
    with pytest.raises(InputError, match=r"2.png: is 24x8, the first frame 24x16"):
        read_sequence(tmp_path)


def test_missing_poses(tmp_path):
    _folder(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "w2c.txt").write_text("[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]\n" * 2)
    (tmp_path / "intrinsics.txt").write_text("1 1.5 0.5 0.5\n")
    with pytest.raises(InputError, match="2 poses for 3 frames"):
        read_sequence(tmp_path)


def test_depth_without_a_reading(tmp_path):
    _folder(tmp_path, ["1.color.png", "2.color.png"])
    for number in (1, 2):
        np.save(tmp_path / f"{number}.depth.npy", np.full((16, 24), np.nan, np.float32))
    with pytest.raises(InputError, match="no pixel of this depth has a reading"):
        read_sequence(tmp_path)


def test_depth_of_some_frames(tmp_path):
    _folder(tmp_path, ["1.color.png", "2.color.png"])
    np.save(tmp_path / "1.depth.npy", np.ones((16, 24), np.float32))
    with pytest.raises(InputError, match="1 frames have no depth"):
        read_sequence(tmp_path)


def test_a_video_that_is_a_still(tmp_path):
    write_video(tmp_path / "still.mp4", np.repeat(_picture(0)[None], 4, axis=0), 8)
    with pytest.raises(InputError, match="the same picture"):
        read_sequence(tmp_path / "still.mp4")


def test_a_file_that_is_neither(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a folder of frames nor a video"):
        read_sequence(tmp_path / "notes.txt")


def test_masks_are_found_by_the_names_of_their_frames(tmp_path):
    _folder(tmp_path / "frames", ["a-1.png", "a-2.png"])
    for name, bright in (("a-1.mask.png", 255), ("a-2.png", 0)):
        write_png(tmp_path / "masks" / name, np.full((16, 24), bright, np.uint8))
    given = read_sequence(tmp_path / "frames", masks=tmp_path / "masks")
    np.testing.assert_array_equal(given.moving.all((1, 2)), [True, False])
    assert given[np.array([1])].moving.shape == (1, 16, 24)
    (tmp_path / "masks" / "a-2.png").unlink()
    with pytest.raises(InputError, match=r"no mask of a-2.png; expected a-2.mask.png or a-2.png"):
        read_sequence(tmp_path / "frames", masks=tmp_path / "masks")
