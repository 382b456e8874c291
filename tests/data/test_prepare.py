"""Every layout becomes records that mean what was on the disk; what cannot be used is named, and the rest goes on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from data import small_videos as small
from PIL import Image

from spatia_jax.cameras import write_cameras
from spatia_jax.data import open_sequences
from spatia_jax.data.procedural import ProceduralConfig
from spatia_jax.data.videos import geometry, runner
from spatia_jax.data.videos.builder import gather
from spatia_jax.data.videos.layouts import find_videos
from spatia_jax.data.videos.preprocess import PrepareConfig, prepare
from spatia_jax.data.videos.runner import Job, read_clips
from spatia_jax.errors import InputError

CONFIG = PrepareConfig(height=32, width=32, frames=4, step=4, captions=False)


@pytest.fixture(autouse=True)
def _without_mapping(monkeypatch):
    """What is found rather than given has its own tests (test_geometry.py); here it is a wall at 2 m."""

    def grid(frames: np.ndarray) -> tuple[int, ...]:
        return len(frames), frames.shape[1] // geometry.STEP, frames.shape[2] // geometry.STEP

    monkeypatch.setattr(geometry, "triangulate", lambda config, frames, cameras: np.full(grid(frames), 2.0, np.float32))
    monkeypatch.setattr(geometry, "find_moving", lambda config, frames, *_: np.zeros(frames.shape[:3], bool))
    monkeypatch.setattr(geometry, "find_cameras", lambda frames, *_: small.path(len(frames)))


def run(source: Path, layout: str, folder: Path, config: PrepareConfig = CONFIG) -> tuple[list[str], dict[str, str]]:
    """Finished names, and why the others were rejected."""
    finished, rejected = runner.run(Job(layout, config, folder), find_videos(source, layout), say=lambda line: None)
    notes = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert [note["video"] for note in notes] == rejected
    return finished, {note["video"]: note["reason"] for note in notes}


def records(source: Path, layout: str, number: int = 0, config: PrepareConfig = CONFIG) -> list[dict]:
    return list(prepare(find_videos(source, layout)[number], layout, config))


@pytest.mark.parametrize("layout", small.MAKERS)
def test_records_are_those_of_the_procedural_world(layout, tmp_path):
    small.MAKERS[layout](tmp_path / "source")
    config = replace(CONFIG, captions=layout == "spatialvid")
    finished, rejected = run(tmp_path / "source", layout, tmp_path / "out", config)
    assert len(finished) == 3
    assert not rejected
    counts = gather(tmp_path / "out")
    assert counts == ({"train": 6} if layout == "spatialvid" else {"train": 4, "test": 2})
    source = open_sequences(ProceduralConfig(), tmp_path / "out")
    assert len(source) == counts["train"]
    written = {record["name"]: record for path in (tmp_path / "out").rglob("*.npz") for record in read_clips(path)}
    for index in range(len(source)):
        record = source[index]
        assert {name: (value.shape, value.dtype) for name, value in record.items() if hasattr(value, "shape")} == {
            "frames": ((4, 32, 32, 3), np.uint8),
            "depth": ((4, 32, 32), np.float16),
            "moving": ((4, 32, 32), np.bool_),
            "cam_from_world": ((4, 3, 4), np.float32),
            "intrinsics": ((4, 4), np.float32),
            "overlap": ((4, 4), np.float16),
        }
        for name, value in written[record["name"]].items():
            np.testing.assert_array_equal(record[name], value)
        assert isinstance(record["caption"], str)
        np.testing.assert_allclose(np.diag(record["overlap"]), 1, rtol=1e-3)
    with pytest.raises(InputError, match="has no split 'validation'"):
        open_sequences(ProceduralConfig(), tmp_path / "out", "validation")


@pytest.mark.parametrize("layout", small.MAKERS)
def test_frames_keep_their_cameras(layout, tmp_path):
    """Clips are fitted to 32 x 32 out of 48 x 64: 8 columns are lost on both sides."""
    small.MAKERS[layout](tmp_path)
    for clip, record in enumerate(records(tmp_path, layout, config=replace(CONFIG, captions=False))):
        numbers = np.arange(4) + 4 * clip
        blue = record["frames"][..., 2].mean((1, 2))
        np.testing.assert_allclose(blue, 40 + 20 * numbers, atol=4)
        scale = np.linalg.norm(record["cam_from_world"][1, :, 3] - record["cam_from_world"][0, :, 3])
        expected = np.asarray(small.path().cam_from_world)[numbers]
        expected[..., 3] *= scale / np.linalg.norm(expected[1, :, 3] - expected[0, :, 3])
        np.testing.assert_allclose(record["cam_from_world"], expected, atol=2e-5)
        np.testing.assert_allclose(record["intrinsics"], np.tile([0.9 * 64 / 48, 1.2, 0.5, 0.5], (4, 1)), rtol=1e-5)


def test_given_depth_and_masks_are_kept(tmp_path):
    small.make_videos(tmp_path)
    record = records(tmp_path, "videos")[1]
    np.testing.assert_allclose(record["depth"][:, 16, 16], 2.0 + np.arange(4, 8) / 10, rtol=1e-3)
    assert (record["depth"][:, :2] == 0).all()  # was not finite
    assert record["moving"].any((1, 2)).all()
    ignoring = replace(CONFIG, ignore=("depth", "masks"))
    found = records(tmp_path, "videos", config=ignoring)[1]
    np.testing.assert_allclose(found["depth"], 2.0, rtol=1e-3)  # the wall, in metres since the cameras are
    assert not found["moving"].any()


def test_metres_of_seven_scenes_are_kept(tmp_path):
    small.make_seven_scenes(tmp_path)
    record = records(tmp_path, "7scenes")[0]
    np.testing.assert_allclose(record["depth"][:, 16, 16], 2.0 + np.arange(4) / 10, rtol=1e-3)
    np.testing.assert_allclose(record["cam_from_world"], np.asarray(small.path().cam_from_world)[:4], atol=1e-5)


def test_a_cropped_copy_of_realestate10k_has_the_intrinsics_of_the_crop(tmp_path):
    """Texts describe the 16:9 frame; copies are often its centre (fx of the README of the shared clips)."""
    cameras = small.path()
    original = jnp.tile(jnp.array([0.5, 0.5 * 1280 / 720, 0.5, 0.5]), (len(cameras), 1))
    write_cameras(tmp_path / "a.txt", replace(cameras, intrinsics=original), "realestate10k")
    small.make_video(tmp_path / "a.mp4")
    record = records(tmp_path, "realestate10k", config=replace(CONFIG, height=48, width=64))[0]
    focal = 0.5 * 48 * 1280 / 720
    np.testing.assert_allclose(record["intrinsics"][0], [focal / 64, focal / 48, 0.5, 0.5], rtol=2e-3)


def test_a_whole_video_is_cut_by_timestamps(tmp_path):
    """As the texts say it: microseconds in the video of the address."""
    small.make_video(tmp_path / "videos" / "IdOfYouTube.mp4")
    write_cameras(tmp_path / "clip.txt", small.path(4), "realestate10k")
    lines = (tmp_path / "clip.txt").read_text().splitlines()[1:]
    stamped = [f"{100_000 * (2 * k + 1)} {line.partition(' ')[2]}\n" for k, line in enumerate(lines)]
    (tmp_path / "clip.txt").write_text("https://www.youtube.com/watch?v=IdOfYouTube\n" + "".join(stamped))
    (record,) = records(tmp_path, "realestate10k")
    np.testing.assert_allclose(record["frames"][..., 2].mean((1, 2)), 40 + 20 * np.array([1, 3, 5, 7]), atol=4)


def test_captions_of_a_file_reach_the_records(tmp_path):
    from spatia_jax.data.videos.captions import caption_key, read_captions
    from spatia_jax.data.videos.preprocess import with_captions

    small.make_videos(tmp_path)
    (tmp_path / "said.json").write_text(json.dumps([{"video_path": "x/a.mp4", "long_caption": "A hall."}]))
    (tmp_path / "said.txt").write_text("a\tA hall.\n")
    (tmp_path / "said.jsonl").write_text('{"name": "a", "caption": "A hall."}\n')
    for file in ("said.json", "said.txt", "said.jsonl"):
        items = with_captions(find_videos(tmp_path, "videos"), read_captions(tmp_path / file), caption_key)
        assert [item.caption for item in items] == ["A hall.", None, None]
    (tmp_path / "said.json").write_text("{")
    with pytest.raises(InputError, match="said.json: not valid JSON"):
        read_captions(tmp_path / "said.json")


def _corrupt(file: Path) -> None:
    file.write_bytes(b"no video at all")


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _shorten(source: Path) -> None:
    small.make_video(source / "videos" / "b.mp4", 3)
    write_cameras(source / "train" / "b.txt", small.path(3), "realestate10k")


def _replace_text(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def _other_size(folder: Path) -> None:
    Image.fromarray(small.pictures(1, 24, 32)[0]).save(folder / "frame-000003.color.png")


def _nan_pose(folder: Path) -> None:
    poses = np.load(folder / "poses.npy")
    poses[1, 2] = np.nan
    np.save(folder / "poses.npy", poses)


def _few_cameras(source: Path) -> None:
    write_cameras(source / "train/b.txt", small.path(5), "realestate10k")


FIRST_POSE = " 0.5 0.5 0 0 1 "  # with its first number
RE10K, VID, SCENES = ("realestate10k", "train/b"), ("spatialvid", "g1/b"), ("7scenes", "chess/seq-02")
NOTES, SEQ = "annotations/g1/b", "chess/seq-02/frame-000002"

# what is wrong: (layout, video), how it came about in the source `s`, what is said, settings
REJECTIONS: dict[str, tuple] = {
    "corrupt video": (RE10K, lambda s: _corrupt(s / "videos/b.mp4"), "b.mp4: cannot be read as a video"),
    "damaged video": (RE10K, lambda s: _cut_short(s / "videos/b.mp4"), "b.mp4: is damaged, it holds . of its 9"),
    "no camera file": (("realestate10k", "videos/b"), lambda s: (s / "train/b.txt").unlink(), "has no camera file"),
    "no video": (RE10K, lambda s: (s / "videos/b.mp4").unlink(), "b.mp4: no video for b.txt"),
    "too short": (RE10K, _shorten, "3 frames are shorter than a clip of 4"),
    "too few cameras": (RE10K, _few_cameras, "5 cameras for 9 frames"),
    "camera is NaN": (
        RE10K, lambda s: _replace_text(s / "train/b.txt", FIRST_POSE, " 0.5 0.5 0 0 nan "), "b.txt:2: value 8 is nan"
    ),
    "no rotation": (
        RE10K, lambda s: _replace_text(s / "train/b.txt", FIRST_POSE, " 0.5 0.5 0 0 3 "), "b.txt:2: the left 3x3 is not"
    ),
    "no caption": (VID, lambda s: (s / NOTES / "caption.json").unlink(), "has no caption", {"captions": True}),
    "no poses": (VID, lambda s: (s / NOTES / "poses.npy").unlink(), "has no camera file"),
    "pose is NaN": (VID, lambda s: _nan_pose(s / NOTES), "poses.npy: row 1 is not finite"),
    "wrong indexes": (VID, lambda s: _replace_text(s / NOTES / "indexes.txt", "2 8", ""), "indexes.txt: 2 rising"),
    "masks damaged": (VID, lambda s: _cut_short(s / NOTES / "dyn_masks.npz"), "dyn_masks.npz"),
    "other size": (SCENES, lambda s: _other_size(s / "chess/seq-02"), "is 32x24, the first frame 64x48"),
    "no pose": (SCENES, lambda s: (s / f"{SEQ}.pose.txt").unlink(), "1 frames have no camera file"),
    "no depth": (SCENES, lambda s: (s / f"{SEQ}.depth.png").unlink(), "frame-000002.depth.png: no such"),
    "cameras required": (
        ("videos", "b"), lambda s: (s / "b.cameras.txt").unlink(), "has no camera file", {"require": ("cameras",)}
    ),
    "masks required": (
        ("videos", "b"), lambda s: (s / "b.masks.npz").unlink(), "has no masks", {"require": ("masks",)}
    ),
    "depth of another size": (
        ("videos", "b"), lambda s: np.save(s / "b.depth.npy", np.ones((9, 4, 4))), r"expected \(9, 48, 64\)"
    ),
    "depth known nowhere": (
        ("videos", "b"), lambda s: np.save(s / "b.depth.npy", np.zeros((9, 48, 64))), "depth is known of 0.0% of the"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTIONS)
def test_what_cannot_be_used_is_named_and_the_rest_goes_on(case, tmp_path):
    (layout, name), spoil, reason, *settings = REJECTIONS[case]
    small.MAKERS[layout](tmp_path / "source")
    spoil(tmp_path / "source")
    finished, rejected = run(tmp_path / "source", layout, tmp_path / "out", replace(CONFIG, **dict(*settings)))
    assert len(finished) == 2
    assert list(rejected) == [name]
    assert re.search(reason, rejected[name]), rejected[name]


def test_a_still_without_cameras_is_rejected(tmp_path):
    small.make_videos(tmp_path / "source", ("a",))
    from spatia_jax.io.video import write_video

    write_video(tmp_path / "source" / "still.mp4", np.repeat(small.pictures(1), 9, axis=0), fps=10)
    finished, rejected = run(tmp_path / "source", "videos", tmp_path / "out")
    assert finished == ["a"]
    assert "all frames are the same picture" in rejected["still"]


def test_a_second_run_does_only_what_is_missing(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "out"
    small.make_realestate10k(source)
    text = (source / "train/b.txt").read_text()
    (source / "train/b.txt").write_text(text.replace(" 0.5 0.5 0 0 1 ", " 0.5 0.5 0 0 nan ", 1))
    assert run(source, "realestate10k", folder)[0] == ["test/c", "train/a"]
    files = {file: file.stat().st_mtime_ns for file in (folder / "videos").rglob("*.npz")}

    done = []
    monkeypatch.setattr(runner, "prepare", lambda item, *_: done.append(item.name) or prepare(item, *_))
    (source / "train/b.txt").write_text(text)  # mended
    assert run(source, "realestate10k", folder) == (["test/c", "train/a", "train/b"], {})
    assert done == ["train/b"]
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    with pytest.raises(InputError, match="was begun with frames 4 \\(now 3\\)"):
        run(source, "realestate10k", folder, replace(CONFIG, frames=3))


def test_a_killed_run_leaves_no_half_video(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "out"
    small.make_realestate10k(source)

    def dies(*args, **members):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", dies)
    with pytest.raises(KeyboardInterrupt):
        run(source, "realestate10k", folder)
    monkeypatch.undo()
    assert not list((folder / "videos").rglob("*.npz"))


@pytest.mark.slow
def test_two_workers_do_what_one_does(tmp_path):
    small.make_seven_scenes(tmp_path / "source")
    items = find_videos(tmp_path / "source", "7scenes")
    for workers in (1, 2):
        job = Job("7scenes", CONFIG, tmp_path / str(workers))
        assert len(runner.run(job, items, workers=workers, say=lambda line: None)[0]) == 3
    for item in items:
        one, two = (read_clips(runner.record_file(tmp_path / str(count), item)) for count in (1, 2))
        for a, b in zip(one, two, strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_what_is_gathered_is_gathered_again_only_for_new_videos(tmp_path):
    small.make_seven_scenes(tmp_path / "source", ("chess/seq-01",))
    run(tmp_path / "source", "7scenes", tmp_path / "out")
    assert gather(tmp_path / "out") == {"train": 2}
    (file,) = (tmp_path / "out").rglob("*.array_record*")
    written = file.stat().st_mtime_ns
    assert gather(tmp_path / "out") == {"train": 2}
    assert file.stat().st_mtime_ns == written
    (tmp_path / "source/chess/seq-01").rename(tmp_path / "source/chess/seq-07")
    run(tmp_path / "source", "7scenes", tmp_path / "out")
    assert gather(tmp_path / "out") == {"train": 4}


def test_nothing_prepared_is_one_line(tmp_path):
    small.make_videos(tmp_path / "source", ("a",))
    _corrupt(tmp_path / "source" / "a.mp4")
    run(tmp_path / "source", "videos", tmp_path / "out")
    with pytest.raises(InputError, match="no video was prepared; see"):
        gather(tmp_path / "out")
    with pytest.raises(InputError, match="not to the end; run the same command again"):
        open_sequences(ProceduralConfig(), tmp_path / "out")
