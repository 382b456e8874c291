"""Small videos and folders in the layouts of real data sets, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import jaxlie
import numpy as np
from PIL import Image

from spatia_jax.cameras import Cameras, write_cameras
from spatia_jax.io.video import write_video

HEIGHT, WIDTH, COUNT = 48, 64, 9
INTRINSICS = np.array([0.9, 1.2, 0.5, 0.5], np.float32)


def pictures(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A pattern that moves; frame k is of brightness 40 + 20 k in its blue channel."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frames = [
        np.stack([127 + 100 * np.sin((x + 3 * k) / 7), 127 + 100 * np.cos((y + k) / 5), 0 * x + 40 + 20 * k], -1)
        for k in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def path(count: int = COUNT) -> Cameras:
    """Sideways and turning a little."""
    xi = np.zeros((count, 6), np.float32)
    xi[:, 0], xi[:, 4] = 0.1 * np.arange(count), 0.02 * np.arange(count)
    return Cameras.from_se3(jaxlie.SE3.exp(jnp.asarray(xi)), jnp.asarray(INTRINSICS))


def make_video(file: Path, count: int = COUNT, **size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, pictures(count, **size), fps=10, crf=1)


def make_realestate10k(source: Path, names: tuple[str, ...] = ("train/a", "train/b", "test/c")) -> None:
    """SOURCE/train/a.txt with SOURCE/videos/a.mp4."""
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_cameras((source / name).with_suffix(".txt"), path(), "realestate10k")
        make_video(source / "videos" / f"{Path(name).name}.mp4")


def make_videos(source: Path, names: tuple[str, ...] = ("a", "b", "test/c")) -> None:
    """SOURCE/a.mp4 with everything beside it."""
    for name in names:
        make_video((source / name).with_suffix(".mp4"))
        write_cameras(source / f"{name}.cameras.txt", path(), "spatia")
        np.save(source / f"{name}.depth.npy", depth_maps())
        np.savez(source / f"{name}.masks.npz", masks=masks())


def depth_maps() -> np.ndarray:
    depth = np.full((COUNT, HEIGHT, WIDTH), 2.0, np.float32) + np.arange(COUNT, dtype=np.float32)[:, None, None] / 10
    depth[:, :4] = np.nan
    return depth


def masks() -> np.ndarray:
    moving = np.zeros((COUNT, HEIGHT, WIDTH), bool)
    for k in range(COUNT):
        moving[k, 20:30, 4 * k : 4 * k + 8] = True
    return moving


def make_seven_scenes(source: Path, names: tuple[str, ...] = ("chess/seq-01", "chess/seq-02", "chess/seq-03")) -> None:
    """SOURCE/chess/seq-01/frame-000000.color.png and so on; seq-03 is held out."""
    (source / "chess").mkdir(parents=True)
    (source / "chess" / "TestSplit.txt").write_text("sequence3\n")
    for name in names:
        folder = source / name
        write_cameras(folder, path(), "7scenes", image_size=(HEIGHT, WIDTH))
        for k, (picture, depth) in enumerate(zip(pictures(), depth_maps(), strict=True)):
            Image.fromarray(picture).save(folder / f"frame-{k:06d}.color.png")
            millimetres = np.where(np.isfinite(depth), np.nan_to_num(depth) * 1000, 65535)
            Image.fromarray(np.round(millimetres).astype(np.uint16)).save(folder / f"frame-{k:06d}.depth.png")


def make_spatialvid(source: Path, names: tuple[str, ...] = ("g1/a", "g1/b", "g2/c"), every: int = 4) -> None:
    """Annotations of every 4th frame."""
    sampled = np.arange(0, COUNT, every)
    pose = np.asarray(path().as_se3().wxyz_xyz)[sampled]
    for name in names:
        make_video((source / "videos" / name).with_suffix(".mp4"))
        folder = source / "annotations" / name
        folder.mkdir(parents=True)
        np.save(folder / "poses.npy", pose[:, [4, 5, 6, 1, 2, 3, 0]])
        np.save(folder / "intrinsics.npy", np.tile(INTRINSICS, (len(sampled), 1)))
        (folder / "indexes.txt").write_text("".join(f"{i} {k}\n" for i, k in enumerate(sampled)))
        (folder / "caption.json").write_text(json.dumps({"SceneSummary": f"a pattern {name}", "SceneDesc": ""}))
        held: dict = {"shape": np.array([HEIGHT // 2, WIDTH // 2])}
        for i, k in enumerate(sampled):
            dense = masks()[k, ::2, ::2]
            rows, columns = np.nonzero(dense)
            held[f"f_{i}_data"], held[f"f_{i}_indices"] = np.ones(len(rows), bool), columns
            held[f"f_{i}_indptr"] = np.concatenate([[0], np.cumsum(dense.sum(1))])
        np.savez_compressed(folder / "dyn_masks.npz", **held)


MAKERS = {
    "videos": make_videos,
    "realestate10k": make_realestate10k,
    "spatialvid": make_spatialvid,
    "7scenes": make_seven_scenes,
}
