"""Files and folders that are either the old ones or the new ones, whenever the process dies.

A file is written beside its place and renamed over it. A folder cannot be renamed over a full one, so it is swapped
in two renames; `recover_directory` finishes a swap that was cut between them, and readers call it first:

    name        .name.new   .name.old   meaning                              recovery
    old         partial     -           died while writing                   drop .new
    -           complete    old         died between the renames             .new -> name, drop .old
    new         -           old         died before the old one was dropped  drop .old

One writer at a time for one path: in a multi-host job only process 0 writes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatia_jax.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path (same folder, same ending) that replaces `path` when the block ends without an error.

    Raises InputError when the disk is full; what was at `path` before is untouched by any error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        with _disk_full_said_clearly(path, temporary):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes the place of `path` when the block ends without an error.

    Raises InputError when the disk is full; what was at `path` before is untouched by any error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    new, old = _siblings(path)
    new.mkdir()
    try:
        with _disk_full_said_clearly(path, new):
            yield new
            for folder, _, files in os.walk(new):
                for file in files:
                    _flush_to_disk(Path(folder, file))
                _flush_to_disk(Path(folder))
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
        _flush_to_disk(path.parent)
    finally:
        # An error between the two renames is finished here as it would be by the next reader.
        recover_directory(path)


def recover_directory(path: str | os.PathLike) -> None:
    """Finishes or undoes a write of the folder `path` that was cut short, and drops what is left over from it."""
    path = Path(path)
    new, old = _siblings(path)
    if old.exists() and not path.exists():
        os.rename(new if new.exists() else old, path)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file, atomically; folders on the way are made."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def require_free_space(path: str | os.PathLike, needed: int) -> None:
    """Raises InputError unless the disk that holds `path` (or its nearest existing parent) has `needed` bytes free."""
    free = _free_bytes(Path(path))
    if free < needed:
        raise InputError(
            f"{path}: the disk is full: {needed:,} bytes needed, {free:,} free; make room or write elsewhere"
        )


def _siblings(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def _free_bytes(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_full_said_clearly(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        files = [file for file in (temporary, *temporary.rglob("*")) if file.is_file()]
        written = sum(file.stat().st_size for file in files)
        free = _free_bytes(temporary)
        raise InputError(
            f"{path}: the disk is full: more than {written + free:,} bytes needed, {written + free:,} free; "
            "make room or write elsewhere (what was there before is kept)"
        ) from error
