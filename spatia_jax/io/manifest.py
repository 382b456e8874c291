"""manifest.json: what made an output folder, so that it can be made again and checked.

Nothing in it names the machine or its user: files are written relative to the manifest or to the working folder, or
by their bare name where they lie elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import spatia_jax
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "open3d", "av", "pillow")
_HASHED = ("inputs", "weights", "outputs")

Files = Mapping[str, "str | os.PathLike"]


def write_manifest(
    path: str | os.PathLike,
    *,
    config: Any,
    seed: int,
    inputs: Files,
    weights: Files,
    outputs: Files | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Writes the resolved config, seed, versions, devices, command line and SHA-256 of all files, atomically.

    `config` is a dataclass or a mapping. A file may be a folder: its hash covers names and contents below it.
    """
    path = Path(path)
    files = {"inputs": inputs, "weights": weights, "outputs": outputs or {}}
    manifest = {
        "config": _plain(config),
        "seed": int(seed),
        "command": [_without_machine(argument) for argument in (sys.argv if arguments is None else arguments)],
        "versions": versions(),
        "devices": sorted({f"{device.platform}: {device.device_kind}" for device in jax.devices()}),
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        **{
            kind: {name: {"file": _portable(file, path.parent), "sha256": sha256(file)} for name, file in group.items()}
            for kind, group in files.items()
        },
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(path: str | os.PathLike, folders: Iterable[str | os.PathLike] = ()) -> list[str]:
    """Hashes every file of the manifest again and returns one line for each difference (an empty list: all the same).

    Files are looked for beside the manifest, in the working folder, and in `folders`.
    """
    manifest = read_manifest(path)
    roots = [Path(path).parent, Path.cwd(), *map(Path, folders)]
    differences = []
    for kind in _HASHED:
        for name, entry in manifest[kind].items():
            found = [root / entry["file"] for root in roots if (root / entry["file"]).exists()]
            if not found:
                differences.append(f"{kind}.{name}: {entry['file']} not found; name the folder that holds it")
            elif (now := sha256(found[0])) != entry["sha256"]:
                differences.append(f"{kind}.{name}: {entry['file']} has changed: {entry['sha256'][:12]} -> {now[:12]}")
    return differences


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Raises InputError when there is no manifest, or none that this program wrote."""
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a manifest ({error})") from error
    missing = [kind for kind in ("config", "seed", *_HASHED) if not isinstance(manifest, dict) or kind not in manifest]
    if missing:
        raise InputError(f"{path}: is not a manifest of spatia_jax, it lacks {', '.join(missing)}")
    return manifest


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of those that can change its numbers."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return {"spatia_jax": spatia_jax.__version__, "python": platform.python_version(), **installed}


def sha256(path: str | os.PathLike) -> str:
    """Hash of a file, or of a folder: of the sorted list of its files' relative names and hashes."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """What JSON can hold, with the same meaning."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _without_machine(str(value))


def _portable(file: str | os.PathLike, folder: Path) -> str:
    absolute = Path(file).absolute()
    for root in (folder.absolute(), Path.cwd()):
        if absolute.is_relative_to(root):
            return absolute.relative_to(root).as_posix()
    return absolute.name


def _without_machine(argument: str) -> str:
    """'/any/folder/photo.jpg' -> 'photo.jpg', also behind '--image='; other text as it is."""
    option, equals, value = argument.rpartition("=")
    if os.path.isabs(value) and "\n" not in value:
        value = _portable(value, Path.cwd())
    elif value.startswith(("~", "../")):
        value = Path(value).name
    return option + equals + value
