"""From one real video to records like those of the procedural world (paper, section 3.1; spec 1.1 to 1.4).

    cut into clips ─► fit to the size ─► cameras ─► depth ─► what moves ─► 3D-IoU between frames

Whatever was given is used, the rest is found. Everything here is a function of one video and the settings, so videos
can be prepared anywhere, in any order. What cannot be used raises InputError and rejects the whole video.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from spatia_jax import mapper
from spatia_jax.cameras import Cameras, default_intrinsics
from spatia_jax.data.videos import geometry
from spatia_jax.data.videos.footage import Footage, Item
from spatia_jax.data.videos.geometry import STEP, GeometryConfig
from spatia_jax.data.videos.layouts import LAYOUTS, read_given_intrinsics
from spatia_jax.errors import InputError
from spatia_jax.io.images import adjust_intrinsics, fit_image, fit_map

# [t, h, w, 3] uint8 -> [t, h, w] metres. A callable that can be pickled, since videos are prepared in many processes.
DepthNetwork = Callable[[np.ndarray], np.ndarray]
Given = Literal["cameras", "depth", "masks"]
Motion = Literal["layout", "found", "none"]


@dataclass(frozen=True)
class PrepareConfig:
    """What records look like and how they come about.

    Attributes:
        height, width, frames: of a clip.
        step: frames between the starts of clips.
        fps: frames a second, where a video file says its own; None: as it is.
        every: use every n-th of these.
        require: reject a video that does not bring these, although they could be found.
        ignore: do not use these, although they may be given.
        motion: without masks, what moves is "found", or "none" does; "layout": none, if the layout is of static scenes.
        captions: reject a video without one.
        fov: horizontal field of view in degrees, where no intrinsics are known.
        median_depth: of a clip without a scale of its own: lengths are multiplied so that its depth has this median.
        min_known: share of the pixels that must have a depth.
        overlap_voxel: side of the voxels of the 3D-IoU, metres; overlap_points: lifted from each frame, about.
    """

    height: int
    width: int
    frames: int
    step: int
    fps: float | None = None
    every: int = 1
    require: tuple[Given, ...] = ()
    ignore: tuple[Given, ...] = ()
    motion: Motion = "layout"
    captions: bool = True
    fov: float | None = None
    median_depth: float = 3.0
    min_known: float = 0.02
    overlap_voxel: float = 0.1
    overlap_points: int = 4096
    geometry: GeometryConfig = GeometryConfig()
    mapper: mapper.MapperConfig = mapper.MapperConfig()

    def __post_init__(self):
        for name in ("height", "width", "step", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.frames < 2:
            raise InputError(f"frames is {self.frames}; a clip has at least 2")
        if both := set(self.require) & set(self.ignore):
            raise InputError(f"{', '.join(sorted(both))}: cannot be both required and ignored")


def prepare(item: Item, layout: str, config: PrepareConfig, network: DepthNetwork | None = None) -> Iterator[dict]:
    """Records of all whole clips of a video, in order.

    Raises:
        InputError: why the video is rejected. Records that were made before must then not be used.
    """
    if config.captions and item.caption is None:
        raise InputError(f"{item.name}: has no caption")
    if item.cameras is None and (LAYOUTS[layout].cameras or "cameras" in config.require):
        raise InputError(f"{item.name}: has no camera file")
    footage = _without(LAYOUTS[layout].open(item, config.fps).thinned(config.every), config.ignore)
    static = config.motion == "none" or (config.motion == "layout" and LAYOUTS[layout].static)
    for name, given in (("depth", footage.depth), ("masks", footage.moving)):
        if given is None and name in config.require:
            raise InputError(f"{item.name}: has no {name}")
    if footage.moving is None and static:
        footage = dataclasses.replace(footage, moving=lambda _: np.zeros(footage.size, bool))
    if footage.count < config.frames:
        raise InputError(f"{item.name}: {footage.count} frames are shorter than a clip of {config.frames}")
    known = read_given_intrinsics(item.path)
    intrinsics = default_intrinsics(config.fov, footage.size) if known is None else known
    for first, frames in _cut(footage.frames(), config.frames, config.step):
        yield {
            **_record(frames, first, footage, intrinsics, config, network, f"{item.name}, clip at frame {first}"),
            "caption": item.caption or "",
            "name": f"{item.name}:{first}",
        }


def _without(footage: Footage, ignored: tuple[Given, ...]) -> Footage:
    cameras = None if "cameras" in ignored else footage.cameras
    depth = None if "depth" in ignored else footage.depth
    moving = None if "masks" in ignored else footage.moving
    metric = footage.metric and (cameras is not None or depth is not None)
    return dataclasses.replace(footage, cameras=cameras, depth=depth, moving=moving, metric=metric)


def _cut(frames: Iterator[np.ndarray], length: int, step: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(number of the first frame, frames) of the clips; what is left at the end is decoded, but not used."""
    held: list[np.ndarray] = []
    first = 0
    for number in itertools.count():
        frame = next(frames, None)
        if frame is None:
            return
        if number >= first:
            held.append(frame)
        if len(held) == length:
            yield first, held
            first += step
            held = held[step:]


def _record(
    frames: list[np.ndarray], first: int, footage: Footage, intrinsics: np.ndarray, config: PrepareConfig,
    network: DepthNetwork | None, where: str,
) -> dict:  # fmt: skip
    """One clip, with everything that was given for it or is found."""
    height, width, numbers = config.height, config.width, range(first, first + len(frames))
    rows, columns = geometry.grid_of(height, width, config.geometry.rows)
    fitted = [fit_image(frame, height, width) for frame in frames]
    video, crop = np.stack([picture for picture, _ in fitted]), fitted[0][1]
    mapped = np.stack([fit_image(frame, rows * STEP, columns * STEP)[0] for frame in frames])
    depth = coarse = None
    if footage.depth is not None:
        depth = fit_map(np.stack([footage.depth(number) for number in numbers]), height, width)
        coarse = fit_map(depth, rows, columns)
    if footage.cameras is not None:
        chosen = footage.cameras[first : first + len(frames)]
        cameras = Cameras(chosen.cam_from_world, jnp.asarray(adjust_intrinsics(np.asarray(chosen.intrinsics), crop)))
    else:
        cameras = geometry.find_cameras(_moves(mapped, where), adjust_intrinsics(intrinsics, crop), coarse)
    if depth is None:
        coarse = geometry.triangulate(config.geometry, mapped, cameras)
        depth = np.asarray(geometry.enlarge(jnp.asarray(coarse), (height, width)))
    if network is not None and footage.depth is None:
        cameras, depth = _completed(config, video, cameras, depth, network(video), footage.metric)
    elif not footage.metric:
        cameras, depth = _scaled(cameras, depth, config.median_depth)
    _check(cameras, depth, config, where)
    if footage.moving is not None:
        moving = fit_map(np.stack([footage.moving(number) for number in numbers]), height, width)
    else:  # judged where depth is known: a guess of it would contradict everything
        moving = geometry.find_moving(config.geometry, mapped, fit_map(depth, rows, columns), cameras)
        moving = fit_map(moving, height, width) & (depth > 0)
    overlap = geometry.frame_overlap(depth, ~moving, cameras, config.overlap_voxel, config.overlap_points)
    return {
        "frames": video,
        "depth": depth.astype(np.float16),
        "moving": moving,
        "cam_from_world": np.asarray(cameras.cam_from_world),
        "intrinsics": np.asarray(cameras.intrinsics),
        "overlap": overlap.astype(np.float16),
    }


def _moves(frames: np.ndarray, where: str) -> np.ndarray:
    """The frames, if they are not all the same picture: then there is no camera to find."""
    if np.abs(frames[1:].astype(np.int16) - frames[:1]).mean((1, 2, 3)).max() < 1:
        raise InputError(f"{where}: all frames are the same picture; a camera is found only where it moves")
    return frames


def _scaled(cameras: Cameras, depth: np.ndarray, median: float) -> tuple[Cameras, np.ndarray]:
    """A clip without a scale, in the unit in which its depth has this median; its first camera stays where it is."""
    known = depth[depth > 0]
    factor = median / float(np.median(known)) if known.size else 1.0
    scale = jnp.array([1.0, 1.0, 1.0, factor], jnp.float32)
    return dataclasses.replace(cameras, cam_from_world=cameras.cam_from_world * scale), depth * np.float32(factor)


def _completed(
    config: PrepareConfig, video: np.ndarray, cameras: Cameras, depth: np.ndarray, estimated: np.ndarray, metric: bool
) -> tuple[Cameras, np.ndarray]:
    """Sure depth where there is any; elsewhere the network's, aligned to it, where neighbours confirm that too.

    A clip without a scale takes that of the network.
    """
    both = (depth > 0) & (estimated > 0)
    if not metric and both.any():
        median = float(np.median(depth[depth > 0]) * np.median(estimated[both] / depth[both]))
        cameras, depth = _scaled(cameras, depth, median)
    colors = jnp.asarray(video, jnp.float32) / 255
    whole = mapper.update(
        config.mapper, jnp.asarray(estimated), colors, cameras, jnp.asarray(depth), colors, judge_motion=False
    )
    return cameras, np.where((depth > 0) | np.asarray(whole.static), np.asarray(whole.depth), 0)


def _check(cameras: Cameras, depth: np.ndarray, config: PrepareConfig, where: str) -> None:
    if not np.isfinite(np.asarray(cameras.cam_from_world)).all() or not np.isfinite(depth).all():
        raise InputError(f"{where}: no finite cameras and depth could be found")
    known = float((depth > 0).mean())
    if known < config.min_known:
        raise InputError(
            f"{where}: depth is known of {known:.1%} of the pixels, less than {config.min_known:.0%} (does the camera "
            "only turn, or are the cameras another video's?)"
        )


def with_captions(items: list[Item], captions: dict[str, str] | None, key: Callable[[str], str]) -> list[Item]:
    """Items with the captions of a file, where one is given."""
    if captions is None:
        return items
    return [dataclasses.replace(item, caption=captions.get(key(item.name))) for item in items]
