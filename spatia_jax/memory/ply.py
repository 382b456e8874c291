"""Point maps as PLY files, which CloudCompare, Blender, MeshLab and open3d read.

Written: binary, little endian, one vertex per point: x y z, red green blue (bytes), weight, count, provenance,
keyframe, and if known nx ny nz and radius. Read: binary little endian or text, properties in any order and number, as
long as x y z are there. A file from elsewhere tells no provenance; its points come in as the user's edits, measured
once, grey if uncoloured.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.memory.point_map import EDIT, EMPTY, OBSERVED, PointMap

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z")]
    + [(name, "u1") for name in ("red", "green", "blue")]
    + [("weight", "<f4"), ("count", "<i4"), ("provenance", "<i4"), ("keyframe", "<i4")]
)
_SURFACE = [(name, "<f4") for name in ("nx", "ny", "nz", "radius")]
_PLY_NAMES = {"f4": "float", "u1": "uchar", "i4": "int"}
_LONGEST_HEADER = 2**16


def write_ply(
    path: str | os.PathLike,
    point_map: PointMap,
    surfaces: tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]] | None = None,
) -> None:
    """Write the points of a map (its empty slots not). What was at `path` stays until the new file is complete.

    Args:
        surfaces: normals and radii of all slots.
    """
    valid = np.asarray(point_map.valid)
    vertices = np.zeros(int(valid.sum()), _VERTEX.descr + (_SURFACE if surfaces else []))
    for i, name in enumerate("xyz"):
        vertices[name] = np.asarray(point_map.positions)[valid, i]
    for i, name in enumerate(("red", "green", "blue")):
        vertices[name] = np.rint(np.clip(np.asarray(point_map.colors)[valid, i], 0.0, 1.0) * 255.0)
    vertices["weight"] = np.asarray(point_map.weights)[valid]
    vertices["count"] = np.asarray(point_map.counts)[valid]
    vertices["provenance"] = np.asarray(point_map.provenance)[valid]
    vertices["keyframe"] = np.asarray(point_map.keyframes)[valid]
    if surfaces:
        normals, radii = surfaces
        for i, name in enumerate(("nx", "ny", "nz")):
            vertices[name] = normals[valid, i]
        vertices["radius"] = radii[valid]
    properties = [f"property {_PLY_NAMES[vertices.dtype[name].str[1:]]} {name}" for name in vertices.dtype.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *properties, "end_header"]
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(header) + "\n").encode())
        file.write(vertices.tobytes())


def read_ply(path: str | os.PathLike, capacity: int | None = None) -> PointMap:
    """Read a point map with `capacity` slots (default: as many as the file has points).

    Raises:
        InputError: if the file is absent, malformed, or holds more points than fit.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a PLY file of points") from error
    vertices = _read_vertices(path, data)
    points = len(vertices)
    capacity = max(points, 1) if capacity is None else capacity
    if points > capacity:
        raise InputError(f"{path} holds {points} points and the map has room for {capacity}; raise the capacity")

    def filled(values: np.ndarray, fill: float, dtype) -> jnp.ndarray:
        pad = [(0, capacity - points)] + [(0, 0)] * (values.ndim - 1)
        return jnp.asarray(np.pad(values.astype(dtype), pad, constant_values=fill))

    def column(name: str, default: float) -> np.ndarray:
        return vertices[name] if name in (vertices.dtype.names or ()) else np.full(points, default)

    positions = np.stack([vertices[name] for name in "xyz"], axis=-1)
    provenance = column("provenance", EDIT)
    if not np.isfinite(positions).all():
        raise InputError(f"{path}: {int((~np.isfinite(positions)).any(-1).sum())} points have no finite position")
    if points and provenance.min() < OBSERVED:
        raise InputError(f"{path}: provenance {provenance.min()} is negative; 0 is observed, k >= 1 is clip k")
    return PointMap(
        positions=filled(positions, 0, np.float32),
        colors=filled(_colors(vertices), 0, np.float32),
        weights=filled(column("weight", 1.0), 0, np.float32),
        counts=filled(column("count", 1), 0, np.int32),
        provenance=filled(provenance, EMPTY, np.int32),
        keyframes=filled(column("keyframe", -1), -1, np.int32),
    )


def _colors(vertices: np.ndarray) -> np.ndarray:
    names = ("red", "green", "blue")
    if not set(names) <= set(vertices.dtype.names or ()):
        return np.full((len(vertices), 3), 0.5)
    colors = np.stack([vertices[name] for name in names], axis=-1)
    return colors / 255.0 if colors.dtype == np.uint8 else np.clip(colors, 0.0, 1.0)


def _read_vertices(path: Path, data: bytes) -> np.ndarray:
    """The vertex element as a structured array."""
    end = data.find(b"end_header", 0, _LONGEST_HEADER)
    start = data.find(b"\n", end) + 1
    if not data.startswith(b"ply") or end < 0 or start == 0:
        raise InputError(f"{path} is not a PLY file: it needs a header from 'ply' to 'end_header'")
    encoding, count, fields = _parse_header(path, data[:end].decode("ascii", "replace").splitlines())
    dtype = np.dtype(fields)
    if not {"x", "y", "z"} <= set(dtype.names or ()):
        raise InputError(f"{path}: the vertices have properties {dtype.names}; they need x, y and z")
    body = data[start:]
    if encoding == "binary_little_endian":
        if len(body) < count * dtype.itemsize:
            raise InputError(f"{path} is cut short: {count} points need {count * dtype.itemsize} bytes of {len(body)}")
        return np.frombuffer(body, dtype, count)
    rows = [tuple(line.split()) for line in body.decode("ascii", "replace").splitlines()[:count]]
    try:
        return np.array(rows, dtype=dtype).reshape(count)
    except ValueError as error:
        raise InputError(f"{path}: its text does not hold {count} lines of {len(fields)} numbers") from error


def _parse_header(path: Path, lines: list[str]) -> tuple[str, int, list[tuple[str, str]]]:
    """Encoding, number of vertices and their fields; whatever other elements follow the vertices is left alone."""
    encoding, count, fields, element = "", -1, [], ""
    for line in lines[1:]:
        match line.split():
            case ["format", ("binary_little_endian" | "ascii") as encoding, _]:
                pass
            case ["format", other, *_]:
                raise InputError(f"{path} is in format {other}; save it as binary_little_endian or ascii")
            case ["element", "vertex", number] if number.isdecimal():
                element, count = "vertex", int(number)
            case ["element", name, *_]:
                if count < 0:
                    raise InputError(f"{path}: element {name} comes before the vertices; save the points alone")
                element = name
            case ["property", kind, name] if element == "vertex" and kind in _TYPES:
                fields.append((name, _TYPES[kind]))
            case ["property", *rest] if element == "vertex":
                raise InputError(f"{path}: vertex property {' '.join(rest)!r} is not a number")
    if not encoding or count < 0:
        raise InputError(f"{path}: the header has no {'vertices' if encoding else 'format'}")
    if len(dict(fields)) < len(fields):
        raise InputError(f"{path}: two vertex properties have the same name")
    return encoding, count, fields
