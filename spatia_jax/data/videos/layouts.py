"""How real data sets lie on a disk: each layout finds its videos, and opens one (docs/data.md shows the trees).

Finding looks at names only; what is wrong with a video is said when it is opened, as an InputError that names the file,
so that one bad video is rejected and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from spatia_jax.cameras import Cameras, read_cameras
from spatia_jax.cameras.formats import read_intrinsics
from spatia_jax.cameras.parsing import data_lines
from spatia_jax.data.videos import spatialvid
from spatia_jax.data.videos.footage import (
    UNREADABLE_ARRAY,
    Footage,
    Item,
    open_frames,
    require_count,
    split_of,
    videos_below,
)
from spatia_jax.errors import InputError
from spatia_jax.io.images import Crop, adjust_intrinsics, read_depth, read_mask
from spatia_jax.io.video import frames_at, probe_video
from spatia_jax.mapper.sequence import ordered_images

_KINECT = (585 / 640, 585 / 480, 320 / 640, 240 / 480)  # 7-Scenes' published camera, for sequences that bring none


@dataclass(frozen=True)
class Layout:
    """Attributes:
    find: the videos of a source, sorted by name.
    open: one of them at a frame rate (None: all frames); raises InputError when it cannot be used.
    cameras: whether every video has to bring cameras.
    static: nothing moves in these scenes, so no motion is looked for.
    captions: whether it brings captions itself.
    """

    find: Callable[[Path], list[Item]]
    open: Callable[[Item, float | None], Footage]
    cameras: bool = True
    static: bool = False
    captions: bool = False


# A folder of videos, with anything beside NAME.mp4 that is called NAME.something ---------------------------------


def _find_videos(source: Path) -> list[Item]:
    items = []
    for path in videos_below(source):
        name = path.relative_to(source).with_suffix("").as_posix()
        items.append(Item(name, split_of(name), path, _beside(path, "cameras")))
    return items


def _open_videos(item: Item, fps: float | None) -> Footage:
    frames, numbers, size = open_frames(item.path, fps)
    total = probe_video(item.path).frames
    cameras = None
    if item.cameras is not None:
        intrinsics = _beside(item.path, "intrinsics")
        given = read_cameras(item.cameras, intrinsics=intrinsics, image_size=size)
        cameras = require_count(given, total, item.cameras)[numbers]
    depth = _stack(_beside(item.path, "depth"), total, size, numbers, _positive)
    moving = _stack(_beside(item.path, "masks"), total, size, numbers, lambda mask: mask > mask.max(initial=0) / 2)
    return Footage(frames, len(numbers), size, cameras, depth, moving, metric=depth is not None)


def _beside(path: Path, what: str) -> Path | None:
    """NAME.what or NAME.what.* beside NAME.mp4, a file or a folder."""
    name = f"{glob.escape(path.stem)}.{what}"
    found = [*path.parent.glob(name), *path.parent.glob(f"{name}.*")]
    return min(found, default=None)


def _positive(depth: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def _stack(path: Path | None, count: int, size: tuple[int, int], numbers: np.ndarray, clean: Callable):
    """An array [count, h, w] on disk, frame by frame."""
    if path is None:
        return None
    try:
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
        stack = stack[stack.files[0]] if isinstance(stack, np.lib.npyio.NpzFile) else stack
    except UNREADABLE_ARRAY as error:
        raise InputError(f"{path}: cannot be read as a NumPy array ({error})") from error
    if stack.shape != (count, *size):
        raise InputError(f"{path}: has shape {stack.shape}, expected {(count, *size)}: a map for every frame")
    return lambda number: clean(np.asarray(stack[numbers[number]]))


# RealEstate10K: camera texts, with videos or folders of frames of the same name, or whole videos by address ------


def _find_realestate10k(source: Path) -> list[Item]:
    texts = {path.relative_to(source).with_suffix("").as_posix(): path for path in sorted(source.rglob("*.txt"))}
    clips = {path.stem: path for path in videos_below(source)}
    items = []
    for name, text in texts.items():
        path = clips.pop(text.stem, None) or _whole_video(text, clips) or _frames_folder(source, text)
        items.append(Item(name, split_of(name), path or text.with_suffix(".mp4"), text))
    taken = {item.path for item in items}
    for path in clips.values():
        if path not in taken:  # a video that no text speaks of
            name = path.relative_to(source).with_suffix("").as_posix()
            items.append(Item(name, split_of(name), path))
    return items


def _whole_video(text: Path, videos: dict[str, Path]) -> Path | None:
    """The video of the address in the first line, by its YouTube id."""
    try:
        address = data_lines(text)[0][1]
    except InputError:
        return None  # said when it is opened
    return videos.get(address.rpartition("=")[2].rpartition("/")[2])


def _frames_folder(source: Path, text: Path) -> Path | None:
    folders = (text.with_suffix(""), source / "frames" / text.stem, source / "frames" / text.parent.name / text.stem)
    return next((folder for folder in folders if folder.is_dir()), None)


def _open_realestate10k(item: Item, fps: float | None) -> Footage:
    """The text has a line for every frame; `fps` does not apply, since the text has chosen already."""
    assert item.cameras is not None
    if not item.path.exists():
        raise InputError(f"{item.path}: no video for {item.cameras.name} (nor a folder of frames, nor the whole video)")
    cameras = read_cameras(item.cameras)
    count = len(cameras)
    if item.path.is_dir() or item.path.stem == item.cameras.stem:
        frames, numbers, size = open_frames(item.path, None)
        require_count(cameras, len(numbers), item.cameras)
    else:
        lines = [text for _, text in data_lines(item.cameras)]
        seconds = [float(line.split()[0]) / 1e6 for line in lines[-count:]]
        size = probe_video(item.path).size
        frames = lambda: frames_at(item.path, seconds)  # noqa: E731
    return Footage(frames, count, size, _of_part(cameras, size))


def _of_part(cameras: Cameras, size: tuple[int, int]) -> Cameras:
    """Intrinsics of the video as it is.

    The texts describe the frame of the original video, whose proportions follow from its square pixels (fy / fx);
    a video of other proportions is taken for a crop at its centre, as most copies of the data set are.
    """
    intrinsics = np.asarray(cameras.intrinsics)
    height = 100_000  # so fine that rounding to whole pixels does not matter
    original = (height, round(height * float(intrinsics[0, 1] / intrinsics[0, 0])))
    return dataclasses.replace(cameras, intrinsics=jnp.asarray(adjust_intrinsics(intrinsics, Crop(original, size))))


# 7-Scenes: folders of frame-N.color, frame-N.depth.png, frame-N.pose.txt -----------------------------------------


def _find_seven_scenes(source: Path) -> list[Item]:
    folders = sorted({path.parent for path in source.rglob("frame-*.color.*")})
    items = []
    for folder in folders:
        name = folder.relative_to(source).as_posix()
        name = folder.resolve().name if name == "." else name
        items.append(Item(name, _seven_scenes_split(folder), folder, folder))
    return items


def _seven_scenes_split(folder: Path) -> str:
    """seq-03 is held out when TestSplit.txt of its scene lists sequence3."""
    held = folder.parent / "TestSplit.txt"
    number = folder.name.rpartition("-")[2].lstrip("0")
    if held.is_file() and f"sequence{number}" in held.read_text(encoding="utf-8").split():
        return "test"
    return "train"


def _open_seven_scenes(item: Item, fps: float | None) -> Footage:
    files = ordered_images(item.path)
    frames, numbers, size = open_frames(item.path, None)
    missing = [file.name for file in files if not _sibling(file, "pose.txt").is_file()]
    if missing:
        raise InputError(f"{item.path}: {len(missing)} frames have no camera file ({missing[0]} first)")
    given = (item.path / "camera-intrinsics.txt").is_file() or size != (480, 640)
    cameras = read_cameras(item.path, intrinsics=None if given else _KINECT, image_size=size)
    require_count(cameras, len(files), item.path)
    beside = [_sibling(file, "depth.png") for file in files]
    depth = (lambda number: read_depth(beside[number], size)) if beside[0].is_file() else None
    masks = [_sibling(file, "mask.png") for file in files]
    moving = (lambda number: read_mask(masks[number], size)[0]) if masks[0].is_file() else None
    return Footage(frames, len(numbers), size, cameras, depth, moving, metric=True)


def _sibling(image: Path, ending: str) -> Path:
    return image.with_name(f"{image.name.split('.')[0]}.{ending}")


LAYOUTS = {
    "videos": Layout(_find_videos, _open_videos, cameras=False),
    "realestate10k": Layout(_find_realestate10k, _open_realestate10k, static=True),
    "spatialvid": Layout(spatialvid.find, spatialvid.open_clip, captions=True),
    "7scenes": Layout(_find_seven_scenes, _open_seven_scenes, static=True),
}


def find_videos(source: Path, layout: str) -> list[Item]:
    """All videos of a source, sorted by name; InputError when there are none."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    items = sorted(LAYOUTS[layout].find(source), key=lambda item: item.name)
    if not items:
        raise InputError(f"{source}: nothing in the layout {layout} (docs/data.md shows each)")
    return items


def read_given_intrinsics(path: Path | None) -> np.ndarray | None:
    """[4] of NAME.intrinsics.txt beside a video without cameras."""
    beside = None if path is None or path.is_dir() else _beside(path, "intrinsics")
    return None if beside is None else read_intrinsics(beside)[0]
