"""Maps a folder of frames or a video: python -m spatia_jax.mapper SEQUENCE --output DIR"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from spatia_jax.cameras import default_intrinsics, write_cameras
from spatia_jax.errors import InputError, exit_status
from spatia_jax.io.images import Crop, adjust_intrinsics, fit_image, fit_map, write_png
from spatia_jax.mapper.map_report import write_map_report
from spatia_jax.mapper.sequence import Sequence, read_sequence
from spatia_jax.mapper.stream import MappedSequence, StreamConfig, map_stream
from spatia_jax.mapper.surface import point_surfaces
from spatia_jax.memory import write_ply

_MOST_ROWS = 480  # of the frames as they are mapped


@dataclass(frozen=True)
class MapArgs:
    """Map a folder of frames (7-Scenes layout or any numbered images) or a video.

    Attributes:
        sequence: the folder or video.
        output: a new or empty folder.
        poses: a camera file or folder; by default what lies with the frames. Poses are where the mapper starts, not
            what it returns.
        intrinsics: intrinsics.txt with normalised fx fy cx cy.
        masks: a folder with name.mask.png or name.png for every frame name.*, bright where something moves: that is not
            matched and does not enter the map.
        fov: horizontal field of view in degrees, where no intrinsics are known; 65 by default.
        ignore_poses, ignore_depth: do not use those that came with the frames.
        every: use every n-th frame.
        rows: of the grid on which depth is found.
        no_loops: without loop closure.
    """

    sequence: Annotated[Path, tyro.conf.Positional]
    output: Path
    poses: Path | None = None
    intrinsics: Path | None = None
    masks: Path | None = None
    fov: float | None = None
    ignore_poses: bool = False
    ignore_depth: bool = False
    every: int = 1
    rows: int = 24
    no_loops: bool = False


def run(args: MapArgs) -> None:
    """Reads, maps, writes everything; InputError before anything is written."""
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise InputError(f"--output {args.output}: is not empty; give a new folder")
    if args.every < 1:
        raise InputError(f"--every is {args.every}; it must be at least 1")
    config = dataclasses.replace(StreamConfig(), rows=args.rows)
    if args.no_loops:
        config = dataclasses.replace(config, loops=0)
    given = read_sequence(args.sequence, poses=args.poses, intrinsics=args.intrinsics, masks=args.masks)
    given = given[np.arange(0, len(given.frames), args.every)]
    if len(given.frames) < 2:
        raise InputError(f"--every {args.every} leaves one frame of {args.sequence}; a map needs at least 2")
    fit = fitted(given, config.rows, args.fov)
    mapped = map_stream(
        config, fit.frames, fit.intrinsics,
        cameras=None if args.ignore_poses else given.cameras,
        depth=None if args.ignore_depth else fit.depth,
        moving=fit.moving,
        say=print,
    )  # fmt: skip
    write_outputs(args.output, given, fit, mapped, config)


@dataclass(frozen=True)
class Fitted:
    """A sequence as it is mapped: cropped to a whole number of cells.

    Attributes:
        frames: [t, h, w, 3] uint8.
        intrinsics: [4] normalised, of the crop.
        depth: [t, rows, columns] medians of the readings in each cell, 0 where there are none; or None.
        moving: [t, rows, columns] bool, cells in which anything moves; or None.
        crop: what was done to the frames.
    """

    frames: np.ndarray
    intrinsics: np.ndarray
    depth: np.ndarray | None
    moving: np.ndarray | None
    crop: Crop


def fitted(given: Sequence, rows: int, fov: float | None) -> Fitted:
    """The sequence in the size in which it is mapped on `rows` rows of cells."""
    height, width = given.frames.shape[1:3]
    step = min(height, _MOST_ROWS) // rows
    if step < 4:
        raise InputError(f"frames of height {height} on --rows {rows}: a cell needs at least 4 pixels; give fewer rows")
    columns = round(width / height * rows)
    step -= step % 4  # so that the image halves twice
    size = (rows * step, columns * step)
    fit = [fit_image(frame, *size) for frame in given.frames]
    intrinsics = default_intrinsics(fov, (height, width))
    if given.cameras is not None:
        intrinsics = np.asarray(given.cameras.intrinsics[0])

    def cells(values: np.ndarray) -> np.ndarray:
        parts = fit_map(values, *size).reshape(-1, rows, step, columns, step).swapaxes(2, 3)
        return parts.reshape(-1, rows, columns, step**2)

    depth = None
    if given.depth is not None:
        readings = cells(given.depth)
        readings = np.where(readings > 0, readings, np.nan)
        known = np.isfinite(readings).any(-1)
        depth = np.zeros(known.shape, np.float32)
        depth[known] = np.nanmedian(readings[known], axis=-1)
    moving = None if given.moving is None else cells(given.moving).max(-1)
    crop = fit[0][1]
    return Fitted(np.stack([image for image, _ in fit]), adjust_intrinsics(intrinsics, crop), depth, moving, crop)


def write_outputs(folder: Path, given: Sequence, fit: Fitted, mapped: MappedSequence, config: StreamConfig) -> None:
    """Poses of all frames; keyframes with depth as a sequence that can be read again; points; report."""
    (folder / "colmap").mkdir(parents=True, exist_ok=True)
    write_cameras(folder / "poses_tum.txt", mapped.cameras, "tum")
    write_cameras(folder / "colmap", mapped.cameras, "colmap", image_size=fit.crop.size)
    write_sequence(folder / "keyframes", given, fit.frames, mapped, fit.crop)
    surfaces = point_surfaces(mapped.graph, mapped.point_map, config.points_per_cell)
    write_ply(folder / "point_map.ply", mapped.point_map, surfaces)
    write_map_report(folder / "report.html", given, fit.frames, mapped)
    for name in ("poses_tum.txt", "colmap", "keyframes", "point_map.ply", "report.html"):
        print(f"{name:14} {folder / name}")
    print(f"a world that starts here: python sample.py configs/tiny.py --sequence {folder / 'keyframes'}")


def write_sequence(folder: Path, given: Sequence, frames: np.ndarray, mapped: MappedSequence, crop: Crop) -> None:
    """Keyframes in the 7-Scenes layout: colour, depth (0 where neighbours do not confirm it), mask of that, pose.

    Depth is in millimetres; of a scene without a known scale, in thousandths of its unit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(frame) for frame in mapped.graph.frames if frame >= 0]
    cameras = mapped.cameras[np.array(numbers)]
    write_cameras(folder, cameras, "7scenes", image_size=crop.size)
    (folder / "names.txt").write_text("".join(f"{given.names[n]}\n" for n in numbers), encoding="utf-8")
    for slot, number in enumerate(numbers):
        depth = 1 / np.asarray(mapped.graph.variables.inverse_depth[slot])
        step = crop.size[0] // len(depth)
        known = np.kron(mapped.static[slot], np.ones((step, step), bool)).astype(bool)
        millimetres = np.clip(np.kron(depth, np.ones((step, step))) * 1000, 1, 65534).astype(np.uint16)
        write_png(folder / f"frame-{slot:06d}.color.png", frames[number])
        write_png(folder / f"frame-{slot:06d}.depth.png", np.where(known, millimetres, 0).astype(np.uint16))
        write_png(folder / f"frame-{slot:06d}.static.png", known)


def main() -> int:
    """Returns the exit status; bad input is one line on standard error."""
    return exit_status(lambda: run(tyro.cli(MapArgs, prog="spatia_jax.mapper")))


if __name__ == "__main__":
    sys.exit(main())
