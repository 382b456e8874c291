"""Tensors that are larger than memory: stacks that are put together only while they are written.

`Mapped` arrays behave like numpy's, except that the imports of this package, which stack a network's layers with the
namespace of their tensors, get a `Stacked` from them: a list of views, and no copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from spatia_jax.io.atomic import atomic_write
from spatia_jax.weights.checkpoints import SAFETENSORS_DTYPES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
PIECE = 1 << 26  # bytes that are copied, or stored, at once


@dataclass(frozen=True)
class Stacked:
    """Equal-shaped arrays as one with a leading axis."""

    layers: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.layers), *self.layers[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*{layer.dtype for layer in self.layers})


class _Namespace:
    """The part of the array API that the imports use on their tensors."""

    @staticmethod
    def stack(arrays: list[np.ndarray]) -> Stacked:
        return Stacked(tuple(array.view(np.ndarray) for array in arrays))


class Mapped(np.ndarray):
    """A view of a mapped file; so are its slices, transposes and reshapes."""

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return _Namespace


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray | Stacked], dtype: np.dtype | None = None) -> None:
    """Writes a safetensors file atomically, with one layer's piece of a tensor in memory at a time.

    `dtype` is that of the file; None keeps each tensor's own. Narrowing rounds to the nearest, ties to even.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, kind = end, dtype or tensor.dtype
        end += int(np.prod(tensor.shape, dtype=np.int64)) * kind.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for piece in _pieces(tensor):
                file.write(np.ascontiguousarray(piece, dtype or tensor.dtype).reshape(-1).view(np.uint8).data)


def assemble(tensor: np.ndarray | Stacked, dtype: np.dtype | None = None) -> np.ndarray:
    """The tensor as one array in memory, converted to `dtype` layer by layer; a mapped one comes as it is."""
    if isinstance(tensor, Stacked):
        whole = np.empty(tensor.shape, dtype or tensor.dtype)
        for row, layer in zip(whole, tensor.layers, strict=True):
            row[...] = layer
        return whole
    return np.asarray(tensor).astype(dtype or tensor.dtype, copy=False)


def nbytes(tensor: np.ndarray | Stacked, dtype: np.dtype | None) -> int:
    """Size in a file written with `dtype`."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * (dtype or tensor.dtype).itemsize


def _pieces(tensor: np.ndarray | Stacked) -> Iterator[np.ndarray]:
    """Consecutive parts along the first axis, of about `PIECE` bytes."""
    if isinstance(tensor, Stacked):
        for layer in tensor.layers:
            yield from _pieces(layer)
    elif tensor.nbytes <= PIECE or tensor.ndim == 0:
        yield tensor
    else:
        rows = max(1, PIECE * len(tensor) // tensor.nbytes)
        for start in range(0, len(tensor), rows):
            yield tensor[start : start + rows]
