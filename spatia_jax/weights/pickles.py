"""PyTorch `.pth` files read without torch, and without running anything that they contain.

A pickle is a program. Of everything that it may ask for, this reader grants the few names that rebuild tensors (as
inert stand-ins of its own) and refuses the rest. Layout (torch.save since 1.6): a zip file of uncompressed entries,
`<name>/data.pkl` with the structure and `<name>/data/<key>` with the bytes of each storage, little-endian. Tensors are
views of the mapped file: nothing of them is read before it is asked for.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from spatia_jax.errors import InputError

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_WRAPPERS = ("state_dict", "model", "model_state")  # training scripts put the tensors under one of these
_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a `.pth` file by name, as read-only views of the file.

    Raises:
        InputError: not the zip format, cut short, asks for anything but tensors, or holds no named tensors.
    """
    archive = _Archive(path)
    loader = _TensorUnpickler(archive)
    try:
        content = loader.load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything (documentation of the module pickle)
        raise InputError(f"{path}: the structure in it cannot be read ({type(error).__name__}: {error})") from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    strange = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, np.ndarray))]
    if strange or not content:
        found = f"{len(strange)} entries are no tensors, first {strange[0]!r}" if strange else "it is empty"
        raise InputError(f"{path}: is not a checkpoint of tensors by name: {found}")
    return dict(content)


class _Archive:
    """The zip file around the pickle: finds entries and maps their bytes."""

    def __init__(self, path: Path):
        self.path = path
        _refuse_legacy(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {info.filename: info for info in archive.infolist()}
                roots = [name[: -len("data.pkl")] for name in self._entries if name.endswith("/data.pkl")]
                if len(roots) != 1:
                    raise InputError(f"{path}: a zip file, but not one that torch.save wrote (no data.pkl in it)")
                self._root = roots[0]
                self.pickle = archive.read(self._root + "data.pkl")
                order = self._root + "byteorder"
                if order in self._entries and archive.read(order) != b"little":
                    raise InputError(f"{path}: was written on a big-endian machine, which is not supported")
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise InputError(f"{path}: cut short or damaged ({error}); download it again") from error
        self._bytes = np.memmap(path, np.uint8, mode="r")

    def storage(self, key: str, size: int) -> np.ndarray:
        """The `size` bytes of a storage."""
        info = self._entries.get(f"{self._root}data/{key}")
        if info is None:
            raise InputError(f"{self.path}: storage {key!r} is missing from it; download it again")
        if info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{self.path}: its entries are compressed; torch.save stores them as they are")
        header = self._bytes[info.header_offset : info.header_offset + _LOCAL_HEADER].tobytes()
        # The local header's own lengths count: torch pads here, so that the data are aligned.
        start = info.header_offset + _LOCAL_HEADER + sum(np.frombuffer(header[26:30], "<u2").tolist())
        if header[:4] != b"PK\x03\x04" or info.file_size != size or start + size > len(self._bytes):
            raise InputError(f"{self.path}: storage {key!r} should have {size:,} bytes; cut short or damaged")
        return self._bytes[start : start + size]


def _refuse_legacy(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        raise InputError(
            f"{path}: written in torch's format from before 1.6 (a bare pickle or tar), which is not read here; "
            "load it with torch and save it again, or get the safetensors file"
        )
    raise InputError(f"{path}: not a file that torch.save wrote (it does not begin like a zip file)")


@dataclass(frozen=True, slots=True)
class _StorageType:
    """Stands for torch.FloatStorage and its like."""

    dtype: np.dtype


class _Rebuild:
    """Stands for torch._utils._rebuild_tensor_v2. An object without attributes: a pickle cannot alter it."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
        if not isinstance(storage, np.ndarray):
            raise InputError("a tensor without a storage")
        itemsize = storage.dtype.itemsize
        if min((offset, *size, *stride), default=0) < 0:
            raise ValueError(f"a tensor of size {size} and stride {stride} at {offset}")
        if 0 in size:
            return np.empty(size, storage.dtype)
        # numpy checks that the view stays inside the storage.
        strides = tuple(step * itemsize for step in stride)
        return np.ndarray(tuple(size), storage.dtype, buffer=storage, offset=offset * itemsize, strides=strides)


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, data, requires_grad=False, hooks=None) -> np.ndarray:
        return data


class _TensorUnpickler(pickle.Unpickler):
    """Grants what tensors need; `find_class` is the only door to code in a pickle."""

    def __init__(self, archive: _Archive):
        super().__init__(io.BytesIO(archive.pickle))
        self._archive = archive
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _RebuildParameter()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            # torch writes so the types that have no storage class of their own.
            raise InputError(
                f"{self._archive.path}: fp8 tensors (and other types newer than bfloat16) are unsupported; "
                "get the bf16 or fp32 file"
            )
        raise InputError(
            f"{self._archive.path}: refused: its pickle asks for {module}.{name}, which no tensor needs and which "
            "could run code"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(numel)) if numel >= 0:
                pass
            case _:
                raise InputError(f"{self._archive.path}: a storage is not written as torch.save does ({pid!r:.80})")
        if key not in self._storages:
            data = self._archive.storage(key, numel * dtype.itemsize)
            self._storages[key] = data.view(np.ndarray).view(dtype) if numel else np.empty(0, dtype)
        return self._storages[key]
