"""One checkpoint on disk as a read-only mapping from names to arrays that are views of the mapped files.

A checkpoint is a safetensors file, a folder of safetensors shards with or without its index, or a `.pth` file. Names,
shapes and types come from the headers; the system reads the pages of a tensor when it is used and may drop them after.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from spatia_jax.errors import InputError
from spatia_jax.weights.pickles import read_pickle

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
PICKLE_ENDINGS = (".pth", ".pt", ".bin")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors by name.

    Attributes:
        path: what was opened: a file, or the folder of the shards.
        files: all files that hold tensors.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each type."""
        return dict(Counter(str(tensor.dtype) for tensor in self.tensors.values()).most_common())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a file, an index, or the folder of one sharded checkpoint.

    Raises:
        InputError: nothing there, several checkpoints in the folder, or a file that is not whole or not supported.
    """
    path = Path(path)
    if path.is_dir():
        groups = checkpoint_groups(path)
        if len(groups) != 1:
            names = ", ".join(sorted(group.name for group in groups)) or "none"
            raise InputError(f"{path}: should hold one checkpoint (.safetensors or .pth); found: {names}")
        path = groups[0]
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if match := _SHARD.fullmatch(path.name):
        return _open_shards(path.parent, *match.group(1, 3))
    return Checkpoint(path, (path,), _read(path))


def checkpoint_groups(folder: Path) -> list[Path]:
    """What `open_checkpoint` should be given for each checkpoint directly in `folder`: an index, first shard, or file.

    Shards named by an index belong to it; so do shards of the same name, so that a missing one is found.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file())
    indices = [file for file in files if file.name.endswith(".safetensors.index.json")]
    indexed = {index.name.removesuffix(".safetensors.index.json") for index in indices}
    groups = list(indices)
    seen = set()
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            if match[1] in indexed or match[1] in seen:
                continue
            seen.add(match[1])
        elif file.suffix not in (".safetensors", ".gguf", *PICKLE_ENDINGS):
            continue
        groups.append(file)
    return groups


def _open_index(index: Path) -> Checkpoint:
    _refuse_placeholder(index)
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(where.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not an index of shards ({error!r}); download it again") from error
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise InputError(f"{index}: names a shard outside its folder ({outside[0]!r})")
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise InputError(f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}")
    by_shard = {shard: _read(index.parent / shard) for shard in shards}
    if absent := sorted(name for name, shard in where.items() if name not in by_shard[shard]):
        raise InputError(
            f"{index}: {len(absent)} tensors are not in the shard it names, first {absent[0]!r} in "
            f"{where[absent[0]]}; index and shards are of different downloads"
        )
    files = tuple(index.parent / shard for shard in shards)
    return Checkpoint(index.parent, files, {name: by_shard[shard][name] for name, shard in where.items()})


def _open_shards(folder: Path, stem: str, count: str) -> Checkpoint:
    files = [folder / f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{folder}: {len(missing)} of {int(count)} shards are missing: {', '.join(missing)}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        found = _read(file)
        if twice := sorted(set(found) & set(tensors)):
            raise InputError(f"{file}: {twice[0]!r} is in another shard too")
        tensors |= found
    return Checkpoint(folder, tuple(files), tensors)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Views of the tensors of one file, whatever its format."""
    _refuse_placeholder(path)
    if path.suffix in PICKLE_ENDINGS:
        return read_pickle(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise InputError(f"{path}: not a checkpoint; known endings are .safetensors, {', '.join(PICKLE_ENDINGS)}")


def _refuse_placeholder(path: Path) -> None:
    """Raises InputError for what people have in place of a checkpoint."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InputError(f"{path}: is empty; download it again")
    if head[:4] == b"GGUF":
        raise InputError(f"{path}: GGUF files (quantised) are unsupported; get the safetensors or .pth file")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path}: a git-LFS pointer, saved in place of the weights; run `git lfs pull` or use `hf download`"
        )
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise InputError(f"{path}: a web page, saved in place of the weights; download the file itself")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > _LARGEST_HEADER:
            raise InputError(f"{path}: not a safetensors file")
        if 8 + length > total:
            raise InputError(f"{path}: cut short within its header ({total:,} bytes); download it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
            end = max((8 + length + entry[3] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: not a safetensors file (its header cannot be read)") from error
    if end > total:
        raise InputError(f"{path}: cut short: {total:,} of {end:,} bytes; download it again")
    data = np.memmap(path, np.uint8, mode="r")[8 + length :].view(np.ndarray)
    return {name: _view(path, name, data, *entry) for name, entry in entries.items()}


def _view(path: Path, name: str, data: np.ndarray, dtype: str, shape: tuple, start: int, stop: int) -> np.ndarray:
    if dtype.startswith("F8"):
        raise InputError(f"{path}: fp8 tensors ({dtype}, first {name!r}) are unsupported; get the bf16 or fp32 file")
    if dtype not in SAFETENSORS_DTYPES:
        raise InputError(f"{path}: {name!r} has the unsupported type {dtype}")
    numpy_dtype = SAFETENSORS_DTYPES[dtype]
    try:
        return data[start:stop].view(numpy_dtype).reshape(shape)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {name!r} does not fit the bytes that the header gives it") from error
