"""Writes `.pth` files as torch.save does, without torch: opcode by opcode, so that bad ones can be written too."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def write_pth(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A state dict in torch's zip layout; arrays that are transposed keep their strides, as torch's do."""
    storages, items = [], b""
    for name, tensor in tensors.items():
        order = np.argsort([-s for s in tensor.strides], kind="stable")
        storages.append(tensor.transpose(order).tobytes())
        items += _text(name) + _tensor(tensor, len(storages) - 1)
    body = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    write_archive(path, body + pickle.MARK + items + pickle.SETITEMS, storages)


def write_archive(path: Path, body: bytes, storages: list[bytes] = ()) -> None:
    """The zip file around a pickle, given without its first and last opcode."""
    root = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle.PROTO + b"\x02" + body + pickle.STOP)
        archive.writestr(f"{root}/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", "3\n")


def _tensor(tensor: np.ndarray, key: int) -> bytes:
    storage = _tuple(
        _text("storage"), _global("torch", STORAGE[str(tensor.dtype)]), _text(str(key)), _text("cpu"), _int(tensor.size)
    )
    strides = [s // tensor.itemsize for s in tensor.strides]
    arguments = _tuple(
        storage + pickle.BINPERSID, _int(0), _tuple(*map(_int, tensor.shape)), _tuple(*map(_int, strides)),
        pickle.NEWFALSE, _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )  # fmt: skip
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
