"""Real sequences at the door: frames from a folder or a video, with poses, intrinsics and depth where there are any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from spatia_jax.cameras import Cameras, read_cameras
from spatia_jax.errors import InputError
from spatia_jax.io.images import read_depth, read_image, read_mask
from spatia_jax.io.video import read_video

_IMAGES = (".jpg", ".jpeg", ".png")
_VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
_STILL = 1.0  # grey levels of 255 by which the most different frames of a video differ, at most, if it is a still


@dataclass(frozen=True)
class Sequence:
    """Frames in order.

    Attributes:
        names: of the frames.
        frames: [t, h, w, 3] uint8.
        cameras: Cameras [t] that came with them, or None.
        depth: [t, h, w] metres, 0 where unknown, or None.
        moving: [t, h, w] bool, where something moves, or None.
    """

    names: list[str]
    frames: np.ndarray
    cameras: Cameras | None
    depth: np.ndarray | None
    moving: np.ndarray | None = None

    def __getitem__(self, chosen: np.ndarray) -> Sequence:
        """The frames with these numbers."""
        return Sequence(
            [self.names[i] for i in chosen],
            self.frames[chosen],
            None if self.cameras is None else self.cameras[jnp.asarray(chosen)],
            None if self.depth is None else self.depth[chosen],
            None if self.moving is None else self.moving[chosen],
        )


def read_sequence(
    path: Path, *, poses: Path | None = None, intrinsics: Path | None = None, masks: Path | None = None
) -> Sequence:
    """A folder of frames (7-Scenes layout, or any images whose names end in numbers) or a video.

    Args:
        poses: a camera file or folder (see `cameras.formats`); by default what lies in the folder itself, if anything.
        intrinsics: normalised fx fy cx cy, for poses without them.
        masks: a folder with name.mask.png or name.png, brighter than half where something moves, for every frame
            name.*.

    Raises:
        InputError: nothing to read, frames of different sizes, fewer than two, a number of poses other than of frames,
            names that do not say the order, a video that is a still, a frame without a mask, or depth without a single
            reading.
    """
    path = Path(path)
    if path.is_dir():
        files = ordered_images(path)
        names, frames = [file.name for file in files], _read_frames(files)
    elif path.suffix.lower() in _VIDEOS:
        files, (frames, _) = [], read_video(path)
        names = [f"frame-{i:06d}" for i in range(len(frames))]
    else:
        raise InputError(f"{path}: neither a folder of frames nor a video ({', '.join(_VIDEOS)})")
    if len(frames) < 2:
        raise InputError(f"{path}: one frame only; a map needs at least 2 (a single photo goes to sample.py --image)")
    difference = np.abs(frames[1:].astype(np.int16) - frames[:1]).mean((1, 2, 3)).max()
    if difference < _STILL:
        raise InputError(f"{path}: all {len(frames)} frames are the same picture; a map needs a camera that moves")
    size = frames.shape[1:3]
    cameras = _read_cameras(path, poses, intrinsics, size)
    if cameras is not None and len(cameras) != len(frames):
        raise InputError(
            f"{poses or path}: {len(cameras)} poses for {len(frames)} frames; expected one each (or give other --poses)"
        )
    moving = None if masks is None else _read_masks(Path(masks), names, size)
    return Sequence(names, frames, cameras, _read_depths(files, size), moving)


def ordered_images(folder: Path) -> list[Path]:
    """Images by the last number in their names."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in _IMAGES]
    colors = [file for file in files if ".color." in file.name]
    files = colors or [file for file in files if not {".depth", ".mask", ".static"} & set(file.suffixes)]
    if not files:
        raise InputError(f"{folder}: no frames in it; expected images ({', '.join(_IMAGES)})")
    numbers: dict[int, Path] = {}
    for file in sorted(files):
        digits = re.findall(r"\d+", file.name)
        if not digits:
            raise InputError(f"{file}: its name has no number, so its place among the frames is unknown")
        number = int(digits[-1])
        if number in numbers:
            raise InputError(f"{file} and {numbers[number].name} have the same number; the order of frames is unknown")
        numbers[number] = file
    return [numbers[number] for number in sorted(numbers)]


def _read_frames(files: list[Path]) -> np.ndarray:
    frames: list[np.ndarray] = []
    for file in files:
        frame = read_image(file)
        if frames and frame.shape != frames[0].shape:
            (h, w), (height, width) = frame.shape[:2], frames[0].shape[:2]
            raise InputError(f"{file}: is {w}x{h}, the first frame {width}x{height}; all have to be of one size")
        frames.append(frame)
    return np.stack(frames)


def _read_cameras(path: Path, poses: Path | None, intrinsics: Path | None, size: tuple[int, int]) -> Cameras | None:
    if poses is not None:
        return read_cameras(poses, intrinsics=intrinsics, image_size=size)
    holds = path.is_dir() and any(
        next(path.glob(pattern), None) for pattern in ("w2c.txt", "transforms.json", "images.txt", "frame-*.pose.txt")
    )
    return read_cameras(path, intrinsics=intrinsics, image_size=size) if holds else None


def _read_depths(files: list[Path], size: tuple[int, int]) -> np.ndarray | None:
    """Depth files beside the frames (name.depth.png or .npy for name.color.*): of all frames or of none."""
    beside = [_depth_file(file) for file in files]
    if not any(beside):
        return None
    missing = [file.name for file, depth in zip(files, beside, strict=True) if depth is None]
    if missing:
        raise InputError(f"{files[0].parent}: {len(missing)} frames have no depth ({missing[0]} first), others have")
    depths = []
    for file in beside:
        assert file is not None
        depths.append(read_depth(file, size))
    return np.stack(depths)


def _read_masks(folder: Path, names: list[str], size: tuple[int, int]) -> np.ndarray:
    masks = []
    for name in names:
        stem = name.split(".")[0]
        candidates = [folder / f"{stem}.mask.png", folder / f"{stem}.png"]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            raise InputError(f"{folder}: no mask of {name}; expected {candidates[0].name} or {candidates[1].name}")
        masks.append(read_mask(file, size)[0])
    return np.stack(masks)


def _depth_file(image: Path) -> Path | None:
    stem = image.name.split(".")[0]
    candidates = [image.with_name(f"{stem}.depth{suffix}") for suffix in (".png", ".npy")]
    return next((file for file in candidates if file.is_file()), None)
