"""A posed video at the door: what every layout is read into, and how it says which frames are wanted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.io.images import read_image
from spatia_jax.io.video import iterate_video, probe_video
from spatia_jax.mapper.sequence import ordered_images

Frames = Callable[[], Iterator[np.ndarray]]
UNREADABLE_ARRAY = (OSError, ValueError, EOFError, zipfile.BadZipFile)  # what np.load raises
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")


@dataclass(frozen=True)
class Item:
    """One video of a source, found but not read.

    Attributes:
        name: unique, a relative path without ending.
        split: "train", "validation" or "test".
        path: the video file or folder of frames; it may be missing, which is said when it is read.
        cameras: the camera file or folder, None where there is none.
        caption: what is said of it; None: a caption is missing.
        annotations: a folder with more, for layouts that have one.
    """

    name: str
    split: str
    path: Path
    cameras: Path | None = None
    caption: str | None = None
    annotations: Path | None = None


@dataclass(frozen=True)
class Footage:
    """t frames in order, read when asked for, with what was given for them.

    Attributes:
        frames: iterates over the t frames [h, w, 3] uint8.
        count: t. size: (height, width) of every frame.
        cameras: Cameras [t], or None: to be found.
        depth: number of a frame to z-depth [h, w] metres, 0 where unknown; None: to be found.
        moving: number of a frame to a mask [h, w] of what moves; None: to be found.
        metric: lengths of what is given are in metres.
    """

    frames: Frames
    count: int
    size: tuple[int, int]
    cameras: Cameras | None = None
    depth: Callable[[int], np.ndarray] | None = None
    moving: Callable[[int], np.ndarray] | None = None
    metric: bool = False

    def thinned(self, every: int) -> Footage:
        """Every n-th frame."""
        if every == 1:
            return self
        chosen = np.arange(0, self.count, every)

        def frames() -> Iterator[np.ndarray]:
            return (frame for number, frame in enumerate(self.frames()) if number % every == 0)

        def at(given: Callable[[int], np.ndarray] | None) -> Callable[[int], np.ndarray] | None:
            return None if given is None else lambda number: given(number * every)

        cameras = None if self.cameras is None else self.cameras[chosen]
        return Footage(frames, len(chosen), self.size, cameras, at(self.depth), at(self.moving), self.metric)


def open_frames(path: Path, fps: float | None) -> tuple[Frames, np.ndarray, tuple[int, int]]:
    """A video file or a folder of numbered images.

    Args:
        fps: wanted rate; None: all frames. A folder of images has no rate of its own.

    Returns: an iterator over the wanted frames, their numbers in the file, and their size.
    """
    if path.is_dir():
        files = ordered_images(path)
        size = read_image(files[0]).shape[:2]
        return (lambda: (checked(read_image(file), size, file) for file in files)), np.arange(len(files)), size
    facts = probe_video(path)
    if not facts.frames:
        raise InputError(f"{path}: holds no frame")
    chosen = np.arange(facts.frames)
    if fps is not None and facts.fps > fps:
        chosen = np.unique(np.round(np.arange(0, facts.frames, facts.fps / fps)).astype(int))
        chosen = chosen[chosen < facts.frames]
    return (lambda: chosen_frames(path, chosen, facts.size)), chosen, facts.size


def chosen_frames(path: Path, chosen: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """These frames (rising numbers) of a video file; InputError when it ends before the last one."""
    wanted, last = set(chosen.tolist()), int(chosen[-1])
    number = -1
    for number, frame in enumerate(iterate_video(path)):
        if number in wanted:
            yield checked(frame, size, f"{path}, frame {number}")
        if number == last:
            return
    raise InputError(f"{path}: is damaged, only {number + 1} of its {last + 1} frames can be decoded")


def checked(frame: np.ndarray, size: tuple[int, int], where: object) -> np.ndarray:
    """The frame, if it is of the size of the first one."""
    if frame.shape[:2] != size:
        (h, w), (height, width) = frame.shape[:2], size
        raise InputError(f"{where}: is {w}x{h}, the first frame {width}x{height}; all have to be of one size")
    return frame


def require_count(cameras: Cameras, count: int, where: object) -> Cameras:
    """The cameras, if there is one for every frame."""
    if len(cameras) != count:
        raise InputError(f"{where}: {len(cameras)} cameras for {count} frames; expected one each")
    return cameras


def videos_below(source: Path) -> list[Path]:
    """All video files under a folder, in order."""
    return sorted(path for path in source.rglob("*") if path.suffix.lower() in VIDEOS)


def split_of(name: str) -> str:
    """By the folder: what lies under test/ or validation/ (or val/) is held out, all else trains."""
    folders = Path(name).parts[:-1]
    if "test" in folders:
        return "test"
    return "validation" if {"validation", "val"} & set(folders) else "train"
