"""weights.json: what each network in a folder of weights was made from, and the SHA-256 of what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.io.manifest import sha256
from spatia_jax.weights.store import find_params

RECORD = "weights.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What `convert` wrote about each network in `folder`; empty where it has not been.

    Raises:
        InputError: there is a record that cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["networks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a record of converted weights ({error!r}); remove it to convert anew") from error


def write_record(folder: Path, networks: Mapping[str, Any]) -> None:
    """Writes the record atomically."""
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({"networks": networks}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def network_hash(folder: Path, network: str) -> str:
    """SHA-256 of a network's file or folder: the recorded one if there is one, since hashing UMT5-XXL takes a minute.

    Raises:
        InputError: it is neither recorded nor there.
    """
    recorded = read_record(folder).get(network, {}).get("sha256")
    return recorded or sha256(find_params(folder, network))


def weight_files(folder: Path) -> dict[str, Path]:
    """Everything in a folder of weights by its name without ending: networks, tokenizer, record."""
    return {entry.stem: entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what is in a folder of weights; recorded hashes are believed, not computed again."""
    recorded = {name: entry["sha256"] for name, entry in read_record(folder).items()}
    return {name: sha256(file) for name, file in weight_files(folder).items() if name not in recorded} | recorded
