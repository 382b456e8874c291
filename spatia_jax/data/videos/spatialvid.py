"""SpatialVID's layout: videos/GROUP/ID.mp4 and annotations/GROUP/ID/ (arXiv 2509.09676, github.com/NJU-3DV/SpatialVID).

`poses.npy` [n, 7] is world-to-camera, translation and quaternion (x y z w); `intrinsics.npy` [n, 4] is normalised. Both
belong to sampled frames, five a second, whose numbers in the video are the second column of `indexes.txt`; between them
poses are interpolated. `dyn_masks.npz` holds a sparse (CSR) mask for each of them. Depth is published as OpenEXR, which
is not read: it is triangulated instead.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import jaxlie
import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.cameras.parsing import read_text
from spatia_jax.cameras.paths import along
from spatia_jax.data.videos.footage import UNREADABLE_ARRAY, Footage, Item, open_frames, split_of, videos_below
from spatia_jax.errors import InputError
from spatia_jax.io.images import fit_map
from spatia_jax.io.video import probe_video

_CAPTIONS = ("SceneDesc", "ShotImmersion", "SceneSummary")  # the first that says anything, longest first
_PER_SECOND = 5.0  # sampled frames, where indexes.txt is missing
_QUATERNION_TOLERANCE = 1e-2


def find(source: Path) -> list[Item]:
    """Videos and annotations of the same name; a caption that is missing is None."""
    videos = {path.relative_to(source / "videos").with_suffix(""): path for path in videos_below(source / "videos")}
    folders = {path.parent.relative_to(source / "annotations") for path in (source / "annotations").rglob("poses.npy")}
    items = []
    for key in sorted({*videos, *folders}):
        folder, path = source / "annotations" / key, videos.get(key, (source / "videos" / key).with_suffix(".mp4"))
        name, poses = key.as_posix(), folder / "poses.npy"
        items.append(Item(name, split_of(name), path, poses if poses.is_file() else None, _caption(folder), folder))
    return items


def _caption(folder: Path) -> str | None:
    file = folder / "caption.json"
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    said = [held.get(key) for key in _CAPTIONS] if isinstance(held, dict) else []
    return next((text for text in said if isinstance(text, str) and text.strip()), None)


def open_clip(item: Item, fps: float | None) -> Footage:
    """One clip, of the frames between its first and its last annotated one."""
    assert item.annotations is not None
    assert item.cameras is not None
    frames, numbers, size = open_frames(item.path, fps)
    poses = _array(item.cameras, 7)
    sampled = _sampled_frames(item.annotations / "indexes.txt", len(poses), item.path)
    intrinsics = _array(item.annotations / "intrinsics.npy", 4)
    if len(intrinsics) not in (1, len(poses)):
        raise InputError(f"{item.annotations}: {len(poses)} poses but {len(intrinsics)} intrinsics")
    length = np.linalg.norm(poses[:, 3:], axis=1)
    worst = np.abs(length - 1).argmax()
    if abs(length[worst] - 1) > _QUATERNION_TOLERANCE:
        raise InputError(f"{item.cameras}: row {worst} has a quaternion of length {length[worst]:.3f}, expected 1")
    wxyz = poses[:, [6, 3, 4, 5]] / length[:, None]
    keys = jaxlie.SE3(jnp.asarray(np.concatenate([wxyz, poses[:, :3]], 1), jnp.float32))
    given = Cameras.from_se3(keys, jnp.asarray(intrinsics, jnp.float32))
    used = numbers[(numbers >= sampled[0]) & (numbers <= sampled[-1])]
    skipped = int((numbers < sampled[0]).sum())
    cameras = along(given, jnp.asarray(np.interp(used, sampled, np.linspace(0, 1, len(sampled))), jnp.float32))

    def within():
        return (frame for place, frame in zip(range(skipped + len(used)), frames(), strict=False) if place >= skipped)

    nearest = np.abs(used[:, None] - sampled).argmin(1)
    masks = _masks(item.annotations / "dyn_masks.npz", len(poses), size)
    moving = None if masks is None else lambda number: masks(int(nearest[number]))
    return Footage(within, len(used), size, cameras, None, moving, metric=True)


def _array(path: Path, columns: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        values = np.load(path, allow_pickle=False)
    except UNREADABLE_ARRAY as error:
        raise InputError(f"{path}: cannot be read as a NumPy array ({error})") from error
    if values.ndim != 2 or values.shape[1] != columns or len(values) < 1:
        raise InputError(f"{path}: has shape {values.shape}, expected n x {columns}")
    if not np.isfinite(values).all():
        raise InputError(f"{path}: row {np.flatnonzero(~np.isfinite(values).all(1))[0]} is not finite")
    return values.astype(np.float64)


def _sampled_frames(path: Path, count: int, video: Path) -> np.ndarray:
    """Numbers in the video of the annotated frames, rising."""
    if not path.is_file():
        facts = probe_video(video)
        return np.round(np.arange(count) * (facts.fps or 30.0) / _PER_SECOND).astype(int)
    rows = [line.split() for line in read_text(path).splitlines()]
    numbers = [int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()]
    if len(numbers) != count or (np.diff(numbers) <= 0).any():
        raise InputError(f"{path}: {len(numbers)} rising frame numbers expected to be {count}, one for every pose")
    return np.array(numbers)


def _masks(path: Path, count: int, size: tuple[int, int]):
    """Number of an annotated frame to its mask in the video's size; None where there are no masks."""
    if not path.is_file():
        return None
    try:
        held = np.load(path, allow_pickle=False)
        height, width = (int(side) for side in held["shape"])
        last = held[f"f_{count - 1}_indptr"]
    except (*UNREADABLE_ARRAY, KeyError) as error:
        raise InputError(f"{path}: does not hold {count} masks ({error})") from error
    if len(last) != height + 1:
        raise InputError(f"{path}: masks of {height} rows with {len(last) - 1} of them stored")

    def mask(number: int) -> np.ndarray:
        parts = [f"f_{number}_{part}" for part in ("data", "indices", "indptr")]
        if missing := [part for part in parts if part not in held]:
            raise InputError(f"{path}: has no {missing[0]}")
        moves, columns, ends = (held[part] for part in parts)
        dense = np.zeros((height, width), bool)
        dense[np.repeat(np.arange(height), np.diff(ends)), columns] = moves.astype(bool)
        return fit_map(dense, *size)

    return mask
