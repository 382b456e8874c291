"""COLMAP's text model, cameras.txt and images.txt: world-to-camera, OpenCV axes, intrinsics in pixels.

Views come in the order of the image names, which is the order of the frames of a video.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatia_jax.cameras import parsing
from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError

_PIXEL_CENTER = 0.5
_PARAMETERS = {"SIMPLE_PINHOLE": (0, 0, 1, 2), "PINHOLE": (0, 1, 2, 3)}  # where fx fy cx cy stand


def read(path: Path, image_size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera poses [v, 3, 4] and normalised intrinsics [v, 4]; the files state the image size."""
    folder = path.parent if path.suffix else path
    intrinsics = _read_intrinsics(folder / "cameras.txt")
    numbered = enumerate(parsing.read_text(folder / "images.txt").splitlines(), start=1)
    lines = [(f"{folder / 'images.txt'}:{n}", line) for n, line in numbered if not line.startswith("#")]
    views = []
    for where, line in lines[::2]:  # every second line lists 2D points, and may be blank
        fields = line.split(maxsplit=9)
        if len(fields) != 10:
            raise InputError(
                f"{where}: {len(fields)} fields, expected 10 (id, quaternion w x y z, tx ty tz, camera, name)"
            )
        values = parsing.parse_numbers(" ".join(fields[1:8]), where, 7, "qw qx qy qz tx ty tz")
        rotation = parsing.rotation_from_quaternion(values[:4], where)
        if fields[8] not in intrinsics:
            raise InputError(f"{where}: camera {fields[8]} is not in cameras.txt, which has {', '.join(intrinsics)}")
        pose = np.concatenate([rotation, values[4:, None]], axis=1)
        views.append((fields[9], pose, intrinsics[fields[8]]))
    if not views:
        raise InputError(f"{folder / 'images.txt'}: is empty, expected two lines an image")
    views.sort(key=lambda view: view[0])
    return np.stack([pose for _, pose, _ in views]), np.stack([k for *_, k in views])


def _read_intrinsics(path: Path) -> dict[str, np.ndarray]:
    intrinsics = {}
    for where, line in parsing.data_lines(path):
        fields = line.split()
        if len(fields) < 4 or fields[1] not in _PARAMETERS:
            model = fields[1] if len(fields) > 1 else line
            raise InputError(
                f"{where}: camera model {model}, expected {' or '.join(_PARAMETERS)} (undistort the images)"
            )
        order = _PARAMETERS[fields[1]]
        values = parsing.parse_numbers(" ".join(fields[2:]), where, 3 + max(order), "width height, then the parameters")
        size = (int(values[1]), int(values[0]))
        intrinsics[fields[0]] = parsing.normalise_intrinsics(values[2:][list(order)], size, _PIXEL_CENTER, where)
    return intrinsics


def write(path: Path, cameras: Cameras, image_size: tuple[int, int] | None) -> None:
    if image_size is None:
        raise InputError(f"{path}: COLMAP has intrinsics in pixels; pass image_size=(height, width)")
    height, width = image_size
    pixels = parsing.pixel_intrinsics(np.asarray(cameras.intrinsics), image_size, _PIXEL_CENTER)
    cameras_txt, images_txt = [], []
    for i, (k, pose) in enumerate(zip(pixels, np.asarray(cameras.as_se3().wxyz_xyz), strict=True), start=1):
        cameras_txt.append(f"{i} PINHOLE {width} {height} {' '.join(f'{x:.12g}' for x in k)}\n")
        images_txt.append(f"{i} {' '.join(f'{x:.12g}' for x in pose)} {i} {i - 1:06d}.png\n\n")
    parsing.write_text(path / "cameras.txt", "".join(cameras_txt))
    parsing.write_text(path / "images.txt", "".join(images_txt))
