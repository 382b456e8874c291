"""What the readers of camera files share: numbers, poses and intrinsics checked, every error with its file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

ROTATION_TOLERANCE = 1e-2  # real files are orthonormal to 1e-3 or so; beyond this the matrix is something else
LARGEST_NORMALISED = 5.0  # a normalised focal length of 5 is a field of view of 11 degrees


def read_text(path: Path) -> str:
    """The text of a file.

    Raises: InputError if it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file") from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: what was there before survives an interruption."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def data_lines(path: Path) -> list[tuple[str, str]]:
    """(`file:line`, text) of the lines that are neither blank nor comments.

    Raises: InputError if there are none.
    """
    numbered = enumerate(map(str.strip, read_text(path).splitlines()), start=1)
    lines = [(f"{path}:{n}", line) for n, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: is empty, expected cameras")
    return lines


def parse_numbers(text: str, where: str, count: int, meaning: str) -> np.ndarray:
    """`count` finite numbers, separated by blanks or commas, brackets allowed: [count] float64."""
    tokens = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    if len(tokens) != count:
        raise InputError(f"{where}: {len(tokens)} values, expected {count} ({meaning})")
    values = np.empty(count)
    for i, token in enumerate(tokens):
        try:
            values[i] = float(token)
        except ValueError:
            raise InputError(f"{where}: value {i + 1} is {token!r}, expected a number ({meaning})") from None
    check_finite(values, where)
    return values


def check_finite(values: np.ndarray, where: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InputError(f"{where}: value {bad[0] + 1} is {values.ravel()[bad[0]]}, expected finite numbers")


def rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """A 3x4 or 4x4 matrix as a rigid transform [3, 4] float64, its rotation projected onto SO(3).

    Raises: InputError for another shape, numbers that are not finite, a last row that is not 0 0 0 1, or a left 3x3
        that is not a rotation within `ROTATION_TOLERANCE`.
    """
    if matrix.shape not in ((3, 4), (4, 4)):
        raise InputError(f"{where}: a matrix of shape {'x'.join(map(str, matrix.shape))}, expected 3x4 or 4x4")
    check_finite(matrix, where)
    if matrix.shape == (4, 4) and not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-4):
        raise InputError(f"{where}: the last row is {matrix[3].tolist()}, expected 0 0 0 1 (is the matrix transposed?)")
    rotation = matrix[:3, :3]
    determinant = np.linalg.det(rotation)
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if determinant < 0:
        raise InputError(
            f"{where}: the left 3x3 mirrors space (determinant {determinant:.4f}), expected a rotation (determinant 1)"
        )
    if error > ROTATION_TOLERANCE:
        raise InputError(
            f"{where}: the left 3x3 is not a rotation (R R^T differs from 1 by {error:.3g}, determinant "
            f"{determinant:.4f}), expected at most {ROTATION_TOLERANCE:g}"
        )
    if error > 2e-6:  # what float32 can hold is left as it is, so that writing and reading gives the same bits
        u, _, vt = np.linalg.svd(rotation)
        rotation = u @ vt
    return np.concatenate([rotation, matrix[:3, 3:]], axis=1)


def rotation_from_quaternion(wxyz: np.ndarray, where: str) -> np.ndarray:
    """[3, 3] float64 from a unit quaternion, w first."""
    norm = np.linalg.norm(wxyz)
    if abs(norm - 1) > ROTATION_TOLERANCE:
        raise InputError(f"{where}: a quaternion of length {norm:.4f}, expected 1")
    w, x, y, z = wxyz / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def inverse(rigid_transform: np.ndarray) -> np.ndarray:
    """The inverse of rigid transforms [..., 3, 4]."""
    rotation = np.swapaxes(rigid_transform[..., :3], -1, -2)
    return np.concatenate([rotation, -rotation @ rigid_transform[..., 3:]], axis=-1)


def check_intrinsics(intrinsics: np.ndarray, where: str) -> np.ndarray:
    """Normalised fx fy cx cy [4], checked."""
    check_finite(intrinsics, where)
    if min(intrinsics[:2]) <= 0:
        raise InputError(f"{where}: focal lengths {intrinsics[0]:g}, {intrinsics[1]:g}, expected both above 0")
    if max(abs(intrinsics)) > LARGEST_NORMALISED:
        raise InputError(
            f"{where}: intrinsics {' '.join(f'{x:g}' for x in intrinsics)} looks like pixels; "
            "divide by width/height (fx, cx by the width; fy, cy by the height)"
        )
    return intrinsics


def normalise_intrinsics(pixels: np.ndarray, image_size: Sequence[int], pixel_center: float, where: str) -> np.ndarray:
    """Normalised fx fy cx cy from pixels of a (height, width) image whose first pixel centre is at `pixel_center`."""
    height, width = image_size
    if height <= 0 or width <= 0:
        raise InputError(f"{where}: an image of height {height} and width {width}, expected both above 0")
    if 0 < max(pixels[:2]) <= LARGEST_NORMALISED:
        raise InputError(f"{where}: focal lengths {pixels[0]:g}, {pixels[1]:g} look normalised, expected pixels")
    shift = 0.5 - pixel_center
    return check_intrinsics((pixels + np.array([0, 0, shift, shift])) / np.array([width, height, width, height]), where)


def pixel_intrinsics(normalised: np.ndarray, image_size: Sequence[int], pixel_center: float) -> np.ndarray:
    """The inverse of `normalise_intrinsics`, for [..., 4]."""
    height, width = image_size
    shift = 0.5 - pixel_center
    return normalised * np.array([width, height, width, height], np.float64) - np.array([0, 0, shift, shift])


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from None


def as_matrix(rows: object, where: str) -> np.ndarray:
    """Nested lists of numbers, as a 3x4 or 4x4 array of float64 (`rigid` checks the shape)."""
    lines = rows if isinstance(rows, list) else []
    is_matrix = lines and all(isinstance(row, list) and len(row) == 4 for row in lines)
    if not is_matrix or not all(isinstance(x, (int, float)) for row in lines for x in row):
        raise InputError(f"{where}: expected a 3x4 or 4x4 matrix as a list of rows of 4 numbers")
    return np.array(rows, np.float64)
