"""A downloaded release into a folder that `--weights` takes, and back: network by network, piece by piece.

The folder holds one safetensors file a network, the tokenizer, and `weights.json`, which records the SHA-256 of what
each file was made from. Safetensors and not Orbax, because its header is known before its data: a layer is written as
soon as it is read, where Orbax would need each stacked parameter whole in memory (5 GB for one of UMT5-XXL in float32),
and because it is what `weights.bundle` reads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write, require_free_space
from spatia_jax.io.manifest import sha256
from spatia_jax.weights.checkpoints import Checkpoint, open_checkpoint
from spatia_jax.weights.layouts import NETWORKS, Arrays, Sizes, check, export_network, import_network, slots_of
from spatia_jax.weights.names import recognise
from spatia_jax.weights.release import Release, find_release
from spatia_jax.weights.streams import BFLOAT16, Mapped, nbytes, write_safetensors

RECORD = "weights.json"
DTYPES = {"stored": None, "float32": np.dtype(np.float32), "bfloat16": BFLOAT16}
EXPORTED = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "control": "control_weight.safetensors",
    "lora": "lora_weights.safetensors",
    "autoencoder": "Wan2.2_VAE.safetensors",
    "text_encoder": "models_t5_umt5-xxl-enc.safetensors",
    "depth": "depth/model.safetensors",
}

Say = Callable[[str], Any]


def convert(
    source: Path,
    target: Path,
    sizes: Sizes,
    *,
    networks: Iterable[str] = NETWORKS,
    dtype: str = "stored",
    say: Say = print,
) -> None:
    """Writes `networks` and the tokenizer of the release in `source` into `target`.

    All inputs are checked before anything is written. A network that `target` holds already, made from the same bytes
    in the same way, is left as it is; so a conversion that was cut short goes on where it stopped.

    Args:
        dtype: of the new files: a key of DTYPES; "stored" keeps the type of the input.

    Raises:
        InputError: something is missing or does not fit, or the disk would be full.
    """
    networks = list(networks)
    release = find_release(source, sizes)
    slots = {network: slots_of(network, sizes) for network in networks}
    # Who converts single networks may have the tokenizer elsewhere.
    wanted = [slot for group in slots.values() for slot in group] + ["tokenizer"] * ("text_encoder" in networks)
    release.require(wanted, sizes)

    record = read_record(target)
    arrays = {network: _arrays(release, slots[network], sizes, network) for network in networks}
    recipes = {network: _recipe(release, slots[network], arrays[network], dtype) for network in networks}
    open_ones = [network for network in networks if not _is_done(target, record, network, recipes[network], say)]
    needed = sum(nbytes(array, DTYPES[dtype]) for network in open_ones for array in arrays[network].values())
    require_free_space(target, needed)
    for network in open_ones:
        file = target / f"{network}.safetensors"
        say(f"{network}: writing {len(arrays[network])} parameters to {file}")
        write_safetensors(file, arrays.pop(network), DTYPES[dtype])
        record[network] = {**recipes[network], "sha256": sha256(file)}
        _write_record(target, record)
    if "text_encoder" in networks and release.tokenizer:
        _copy(release.tokenizer, target / release.tokenizer.name)


def export(weights: Path, target: Path, sizes: Sizes, *, say: Say = print) -> None:
    """Writes every network in `weights` back under the official names, exactly; `.pth` files become safetensors.

    Raises:
        InputError: no network there, or one that does not fit `sizes`.
    """
    networks = [network for network in NETWORKS if (weights / f"{network}.safetensors").is_file()]
    if not networks:
        raise InputError(f"{weights}: holds no weights ({', '.join(f'{n}.safetensors' for n in NETWORKS)})")
    for network in networks:
        arrays = {n: a.view(Mapped) for n, a in open_checkpoint(weights / f"{network}.safetensors").items()}
        for slot, tensors in export_network(network, arrays, sizes).items():
            file = target / EXPORTED[slot]
            say(f"{slot}: writing {len(tensors)} tensors to {file}")
            require_free_space(target, sum(tensor.nbytes for tensor in tensors.values()))
            write_safetensors(file, {name: np.asarray(tensor) for name, tensor in tensors.items()})
    for name in ("tokenizer.json", "spiece.model"):
        if (weights / name).is_file():
            _copy(weights / name, target / name)


def describe(checkpoint: Checkpoint, sizes: Sizes) -> tuple[list[str], list[str]]:
    """What a checkpoint is, as lines to print, and what of it does not fit `sizes` (nothing: it fits)."""
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in checkpoint.dtypes().items())
    naming = recognise(checkpoint)
    size = f"{len(checkpoint)} tensors in {len(checkpoint.files)} file(s), {checkpoint.nbytes:,} bytes"
    lines = [f"{checkpoint.path}: {size}: {kinds}"]
    if naming is None:
        return lines, ["its tensors are of no network of ours"]
    return [*lines, f"  {naming.slot}, {naming.form} names"], check(naming, checkpoint, sizes)


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


def _write_record(folder: Path, networks: Mapping[str, Any]) -> None:
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({"networks": networks}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _recipe(release: Release, slots: tuple[str, ...], arrays: Arrays, dtype: str) -> dict[str, Any]:
    """What a file of ours is made from and how: equal recipes make equal files."""
    parts = [release.parts[slot] for slot in slots]
    files = sorted(file for part in parts for file in part.checkpoint.files)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {
        "inputs": {file.relative_to(release.folder).as_posix(): sha256(file) for file in files},
        "dtype": dtype,
        "layout": hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest(),
    }


def _is_done(folder: Path, record: Mapping[str, Any], network: str, recipe: Mapping[str, Any], say: Say) -> bool:
    file, old = folder / f"{network}.safetensors", record.get(network)
    if not old or not file.is_file() or any(old.get(key) != value for key, value in recipe.items()):
        return False
    if sha256(file) != old.get("sha256"):
        return False
    say(f"{network}: {file} is there already, from the same inputs")
    return True


def _arrays(release: Release, slots: tuple[str, ...], sizes: Sizes, network: str) -> Arrays:
    return import_network(network, {slot: release.parts[slot].tensors() for slot in slots}, sizes)


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
