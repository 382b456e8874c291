"""Camera files of other programs, read and written.

One function reads, `read_cameras`, one writes, `write_cameras`, and a table, `FORMATS`, holds what they know and names
each convention. Nothing can tell a camera-to-world matrix from a world-to-camera one, so nothing here guesses: the
format decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.cameras import colmap, nerfstudio, parsing
from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError

_log = logging.getLogger(__name__)

# What a reader gives: poses [v, 3, 4] world-to-camera, and normalised intrinsics [v, 4] where the format has them.
Poses = tuple[np.ndarray, np.ndarray | None]
ImageSize = tuple[int, int] | None  # (height, width)


@dataclass(frozen=True)
class Format:
    """A camera file format: what it is called, what its numbers mean, how to read and write it."""

    name: str
    convention: str
    read: Callable[[Path, ImageSize], Poses]
    write: Callable[[Path, Cameras, ImageSize], None]


def read_cameras(
    path: str | Path,
    intrinsics: str | Path | Sequence[float] | Float[Array | np.ndarray, "*v 4"] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Cameras:
    """Read a camera path from a file or folder, whose format is recognised by name and content (and logged).

    Args:
        path: a w2c.txt, RealEstate10K or TUM text, a transforms.json, or a folder: 7-Scenes, COLMAP text, or one that
            holds a w2c.txt or transforms.json.
        intrinsics: fx fy cx cy normalised by width, height, width, height, one for all views or one each, or the path
            of such an intrinsics.txt. Replaces what the files say; needed for TUM, which says nothing.
        image_size: (height, width) in pixels, for formats whose intrinsics are in pixels of an unstated size.

    Raises: InputError naming file and line.
    """
    path = Path(path)
    fmt = recognise(path)
    _log.info("%s: %s (%s)", path, fmt.name, fmt.convention)
    poses, own_intrinsics = fmt.read(path, image_size)
    chosen = own_intrinsics if intrinsics is None else _given_intrinsics(intrinsics)  # type: ignore[arg-type]
    if chosen is None:
        raise InputError(f"{path}: {fmt.name} has no intrinsics here; pass intrinsics=(fx, fy, cx, cy), normalised")
    if len(chosen) not in (1, len(poses)):
        raise InputError(f"{path}: {len(poses)} poses but {len(chosen)} intrinsics, expected 1 or {len(poses)}")
    chosen = np.broadcast_to(chosen, (len(poses), 4))
    return Cameras(jnp.asarray(poses, jnp.float32), jnp.asarray(chosen, jnp.float32))


def write_cameras(
    path: str | Path, cameras: Cameras, format: str = "spatia", image_size: tuple[int, int] | None = None
) -> None:
    """Write a camera path [v] in one of `FORMATS`. Files appear whole or not at all.

    Args:
        image_size: (height, width) in pixels, for formats with pixel intrinsics.

    Raises: InputError for an unknown format, or cameras that the format cannot hold.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown, expected one of {', '.join(FORMATS)}")
    if len(cameras.shape) != 1 or not len(cameras):
        raise InputError(f"{path}: cameras of shape {cameras.shape}, expected a path of at least one view")
    FORMATS[format].write(Path(path), cameras, image_size)


def recognise(path: str | Path) -> Format:
    """The format of a file or folder, from its name and then its first line.

    Raises: InputError that says what was seen if it is none of `FORMATS`.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "w2c.txt").exists():
            return FORMATS["spatia"]
        if (path / "transforms.json").exists():
            return FORMATS["nerfstudio"]
        if (path / "images.txt").exists():
            return FORMATS["colmap"]
        if any(path.glob("frame-*.pose.txt")):
            return FORMATS["7scenes"]
        raise InputError(
            f"{path}: holds no cameras; expected w2c.txt, transforms.json, images.txt (COLMAP) or frame-*.pose.txt"
        )
    if path.suffix == ".json":
        return FORMATS["nerfstudio"]
    if path.name == "images.txt":
        return FORMATS["colmap"]
    lines = [text for _, text in parsing.data_lines(path)]
    if "w2c" in path.name or lines[0].startswith("["):
        return FORMATS["spatia"]
    if lines[0].startswith("http") or len(lines[0].split()) == 19:
        return FORMATS["realestate10k"]
    if len(lines[0].split()) == 8:
        return FORMATS["tum"]
    raise InputError(
        f"{path}:1: {len(lines[0].split())} values a line is no known camera format; expected a JSON list (w2c.txt), "
        "19 numbers (RealEstate10K) or 8 (TUM)"
    )


def read_intrinsics(path: str | Path) -> np.ndarray:
    """Normalised fx fy cx cy, [1, 4] or one line a view [v, 4], from an intrinsics.txt.

    Raises: InputError naming file and line.
    """
    lines = parsing.data_lines(Path(path))
    return np.stack([_normalised(text, where) for where, text in lines])


def _normalised(text: str, where: str) -> np.ndarray:
    return parsing.check_intrinsics(parsing.parse_numbers(text, where, 4, "fx fy cx cy"), where)


def _given_intrinsics(intrinsics: str | Path | Sequence[float] | Array) -> np.ndarray:
    if isinstance(intrinsics, (str, Path)):
        return read_intrinsics(intrinsics)
    values = np.atleast_2d(np.asarray(intrinsics, np.float64))
    if values.ndim != 2 or values.shape[1] != 4:
        raise InputError(f"intrinsics of shape {values.shape}, expected 4 numbers (fx fy cx cy), or 4 for each view")
    return np.stack([parsing.check_intrinsics(row, f"intrinsics, view {i}") for i, row in enumerate(values)])


def _row(values: np.ndarray | Sequence[float]) -> str:
    return " ".join(f"{float(x):.12g}" for x in values)


# Spatia release: w2c.txt and intrinsics.txt -------------------------------------------------------


def _spatia_file(path: Path) -> Path:
    return path / "w2c.txt" if path.is_dir() or not path.suffix else path


def _json_pose(text: str, where: str) -> np.ndarray:
    return parsing.rigid(parsing.as_matrix(parsing.parse_json(text, where), where), where)


def _read_spatia(path: Path, image_size: ImageSize) -> Poses:
    path = _spatia_file(path)
    poses = [_json_pose(text, where) for where, text in parsing.data_lines(path)]
    beside = path.with_name("intrinsics.txt")
    return np.stack(poses), read_intrinsics(beside) if beside.exists() else None


def _write_spatia(path: Path, cameras: Cameras, image_size: ImageSize) -> None:
    path = _spatia_file(path)
    intrinsics = np.asarray(cameras.intrinsics)
    rows = intrinsics[:1] if (intrinsics == intrinsics[0]).all() else intrinsics
    parsing.write_text(path.with_name("intrinsics.txt"), "".join(_row(row) + "\n" for row in rows))
    matrices = [[*pose.tolist(), [0.0, 0.0, 0.0, 1.0]] for pose in np.asarray(cameras.cam_from_world, np.float64)]
    parsing.write_text(path, "".join(f"{matrix}\n" for matrix in matrices))


# RealEstate10K: address of the video, then timestamp, intrinsics, 0 0, pose -----------------------


def _read_realestate10k(path: Path, image_size: ImageSize) -> Poses:
    lines = parsing.data_lines(path)
    frames = lines[1:] if len(lines[0][1].split()) == 1 else lines  # some copies lack the address
    if not frames:
        raise InputError(f"{path}: holds an address and no frames, expected 19 numbers a frame")
    meaning = "timestamp, fx fy cx cy, 0 0, 3x4 world-to-camera"
    rows = [(parsing.parse_numbers(text, where, 19, meaning), where) for where, text in frames]
    intrinsics = [parsing.check_intrinsics(row[1:5], where) for row, where in rows]
    poses = [parsing.rigid(row[7:].reshape(3, 4), where) for row, where in rows]
    return np.stack(poses), np.stack(intrinsics)


def _write_realestate10k(path: Path, cameras: Cameras, image_size: ImageSize) -> None:
    frames = zip(np.asarray(cameras.intrinsics), np.asarray(cameras.cam_from_world), strict=True)
    lines = [f"{i} {_row(k)} 0 0 {_row(pose.ravel())}\n" for i, (k, pose) in enumerate(frames)]
    parsing.write_text(path, "https://unknown\n" + "".join(lines))


# 7-Scenes: a folder of frame-N.pose.txt, camera-to-world, and camera-intrinsics.txt in pixels -----


def _read_seven_scenes(path: Path, image_size: ImageSize) -> Poses:
    poses = []
    for file in sorted(path.glob("frame-*.pose.txt")):
        rows = parsing.data_lines(file)
        if len(rows) != 4:
            raise InputError(f"{file}: {len(rows)} lines, expected 4 (4x4 camera-to-world)")
        matrix = np.stack([parsing.parse_numbers(text, where, 4, "a row of 4x4") for where, text in rows])
        poses.append(parsing.inverse(parsing.rigid(matrix, str(file))))
    file = path / "camera-intrinsics.txt"
    if not file.exists():
        return np.stack(poses), None
    rows = parsing.data_lines(file)
    if len(rows) != 3:
        raise InputError(f"{file}: {len(rows)} lines, expected 3 (a 3x3 matrix in pixels)")
    k = np.stack([parsing.parse_numbers(text, where, 3, "a row of 3x3") for where, text in rows])
    if image_size is None:
        raise InputError(f"{file}: intrinsics in pixels of an unstated size; pass image_size=(height, width)")
    pixels = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    return np.stack(poses), parsing.normalise_intrinsics(pixels, image_size, 0.0, str(file))[None]


def _write_seven_scenes(path: Path, cameras: Cameras, image_size: ImageSize) -> None:
    intrinsics = np.asarray(cameras.intrinsics)
    if (intrinsics != intrinsics[0]).any():
        raise InputError(f"{path}: 7-Scenes holds one set of intrinsics, but these cameras zoom")
    if image_size is None:
        raise InputError(f"{path}: 7-Scenes intrinsics are in pixels; pass image_size=(height, width)")
    fx, fy, cx, cy = parsing.pixel_intrinsics(intrinsics[0], image_size, 0.0)
    rows = ([fx, 0, cx], [0, fy, cy], [0, 0, 1])
    parsing.write_text(path / "camera-intrinsics.txt", "".join(_row(row) + "\n" for row in rows))
    for i, pose in enumerate(parsing.inverse(np.asarray(cameras.cam_from_world, np.float64))):
        matrix = [*pose, [0, 0, 0, 1]]
        parsing.write_text(path / f"frame-{i:06d}.pose.txt", "".join(_row(row) + "\n" for row in matrix))


# TUM: timestamp, camera-to-world as translation and quaternion (x y z w) --------------------------


def _read_tum(path: Path, image_size: ImageSize) -> Poses:
    poses = []
    for where, text in parsing.data_lines(path):
        values = parsing.parse_numbers(text, where, 8, "timestamp tx ty tz qx qy qz qw")
        rotation = parsing.rotation_from_quaternion(values[[7, 4, 5, 6]], where)
        poses.append(parsing.inverse(np.concatenate([rotation, values[1:4, None]], axis=1)))
    return np.stack(poses), None


def _write_tum(path: Path, cameras: Cameras, image_size: ImageSize) -> None:
    wxyz_xyz = np.asarray(cameras.as_se3().inverse().wxyz_xyz)
    lines = [f"{i} {_row([*values[4:], *values[1:4], values[0]])}\n" for i, values in enumerate(wxyz_xyz)]
    parsing.write_text(path, "".join(lines))


FORMATS = {
    "spatia": Format(
        "Spatia w2c.txt", "world-to-camera, OpenCV axes, normalised intrinsics.txt", _read_spatia, _write_spatia
    ),
    "realestate10k": Format(
        "RealEstate10K",
        "world-to-camera, OpenCV axes, normalised intrinsics",
        _read_realestate10k,
        _write_realestate10k,
    ),
    "7scenes": Format(
        "7-Scenes folder",
        "camera-to-world, OpenCV axes, pixel intrinsics with integer pixel centres",
        _read_seven_scenes,
        _write_seven_scenes,
    ),
    "tum": Format("TUM trajectory", "camera-to-world, OpenCV axes, no intrinsics", _read_tum, _write_tum),
    "nerfstudio": Format(
        "transforms.json",
        "camera-to-world, OpenGL axes, pixel intrinsics with pixel centres at 0.5",
        nerfstudio.read,
        nerfstudio.write,
    ),
    "colmap": Format(
        "COLMAP text folder",
        "world-to-camera, OpenCV axes, pixel intrinsics with pixel centres at 0.5",
        colmap.read,
        colmap.write,
    ),
}
