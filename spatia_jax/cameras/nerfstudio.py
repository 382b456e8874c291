"""transforms.json of instant-ngp and nerfstudio: camera-to-world, OpenGL axes, intrinsics in pixels.

Frames keep the order of the file. Poses are taken as they are; `applied_transform` and `applied_scale` are not undone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from spatia_jax.cameras import parsing
from spatia_jax.cameras.camera import Cameras
from spatia_jax.cameras.conventions import OPENGL, to_world_from_cam
from spatia_jax.errors import InputError

_PIXEL_CENTER = 0.5
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def read(path: Path, image_size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera poses [v, 3, 4] and normalised intrinsics [v, 4]."""
    path = _file(path)
    content = parsing.parse_json(parsing.read_text(path), str(path))
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(f'{path}: no "frames", expected a list of at least one')
    poses, intrinsics = [], []
    for i, frame in enumerate(frames):
        where = f"{path}: frame {i}"
        if not isinstance(frame, dict) or "transform_matrix" not in frame:
            raise InputError(f'{where}: no "transform_matrix", expected a 4x4 camera-to-world matrix')
        world_from_cam = parsing.rigid(parsing.as_matrix(frame["transform_matrix"], where), where)
        poses.append(parsing.inverse(world_from_cam * np.array([*OPENGL.signs, 1])))
        intrinsics.append(_intrinsics({**content, **frame}, image_size, where))
    return np.stack(poses), np.stack(intrinsics)


def write(path: Path, cameras: Cameras, image_size: tuple[int, int] | None) -> None:
    if image_size is None:
        raise InputError(f"{path}: transforms.json has intrinsics in pixels; pass image_size=(height, width)")
    height, width = image_size
    pixels = parsing.pixel_intrinsics(np.asarray(cameras.intrinsics), image_size, _PIXEL_CENTER)
    poses = np.asarray(to_world_from_cam(cameras, OPENGL), np.float64)
    frames = [
        {
            "file_path": f"images/{i:06d}.png",
            **dict(zip(("fl_x", "fl_y", "cx", "cy"), k.tolist(), strict=True)),
            "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]],
        }
        for i, (k, pose) in enumerate(zip(pixels, poses, strict=True))
    ]
    content = {"camera_model": "PINHOLE", "w": width, "h": height, "frames": frames}
    parsing.write_text(_file(path), json.dumps(content, indent=1))


def _file(path: Path) -> Path:
    return path if path.suffix == ".json" else path / "transforms.json"


def _intrinsics(fields: dict, image_size: tuple[int, int] | None, where: str) -> np.ndarray:
    if any(_number(fields, name, where, 0.0) for name in _DISTORTION):
        raise InputError(f"{where}: the lens is distorted ({', '.join(_DISTORTION)}), expected undistorted images")
    default_height, default_width = image_size or (None, None)
    height, width = _number(fields, "h", where, default_height), _number(fields, "w", where, default_width)
    if height is None or width is None:
        raise InputError(f'{where}: no image size, expected "h" and "w", or image_size=(height, width)')
    angle = _number(fields, "camera_angle_x", where, None)
    fx = _number(fields, "fl_x", where, width / 2 / math.tan(angle / 2) if angle else None)
    if fx is None:
        raise InputError(f'{where}: no focal length, expected "fl_x" in pixels or "camera_angle_x" in radians')
    center = (_number(fields, "cx", where, width / 2), _number(fields, "cy", where, height / 2))
    pixels = np.array([fx, _number(fields, "fl_y", where, fx), *center], np.float64)
    return parsing.normalise_intrinsics(pixels, (int(height), int(width)), _PIXEL_CENTER, where)


def _number(fields: dict, name: str, where: str, default: float | None) -> float | None:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, (int, float)):
        raise InputError(f'{where}: "{name}" is {value!r}, expected a number')
    return value
