"""A downloaded release into a folder that `--weights` takes, and back: network by network, piece by piece.

The folder holds one Orbax checkpoint a network (or one safetensors file), the tokenizer, and `weights.json`, which
records the SHA-256 of what each network was made from and of what was written. Orbax, because the hosts of a pod read
it in parallel, each its own pieces, and because that is what training writes. It takes twice the largest stacked
parameter in memory, which has 5 GB in float32. Safetensors are written with 64 MB in memory, and are one file to
carry around; whatever reads weights takes both.
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
from spatia_jax.io.atomic import atomic_write, recover_directory, require_free_space
from spatia_jax.io.manifest import sha256
from spatia_jax.weights.checkpoints import Checkpoint
from spatia_jax.weights.layouts import NETWORKS, Arrays, Sizes, check, export_network, import_network, slots_of
from spatia_jax.weights.names import recognise
from spatia_jax.weights.orbax import write_orbax
from spatia_jax.weights.record import read_record, write_record
from spatia_jax.weights.release import Release, find_release
from spatia_jax.weights.store import find_params, read_arrays
from spatia_jax.weights.streams import BFLOAT16, Mapped, nbytes, write_safetensors

ENDINGS = {"orbax": "", "safetensors": ".safetensors"}
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
    format: str = "orbax",
    say: Say = print,
) -> None:
    """Writes `networks` and the tokenizer of the release in `source` into `target`.

    All inputs are checked before anything is written. A network that `target` holds already, made from the same bytes
    in the same way, is left as it is; so a conversion that was cut short goes on where it stopped.

    Args:
        dtype: of the new files: a key of DTYPES; "stored" keeps the type of the input.
        format: a key of ENDINGS: a folder or a file for each network.

    Raises:
        InputError: something is missing or does not fit, `target` holds one of the networks in another format, or the
            disk would be full.
    """
    networks = list(networks)
    outputs = {network: target / (network + ENDINGS[format]) for network in networks}
    _refuse_other_formats(target, outputs)
    release = find_release(source, sizes)
    slots = {network: slots_of(network, sizes) for network in networks}
    # Who converts single networks may have the tokenizer elsewhere.
    wanted = [slot for group in slots.values() for slot in group] + ["tokenizer"] * ("text_encoder" in networks)
    release.require(wanted, sizes)

    record = read_record(target)
    arrays = {network: _arrays(release, slots[network], sizes, network) for network in networks}
    recipes = {network: _recipe(release, slots[network], arrays[network], dtype, format) for network in networks}
    open_ones = [n for n in networks if not _is_done(outputs[n], record.get(n), n, recipes[n], say)]
    needed = sum(nbytes(array, DTYPES[dtype]) for network in open_ones for array in arrays[network].values())
    require_free_space(target, needed)
    for network in open_ones:
        say(f"{network}: writing {len(arrays[network])} parameters to {outputs[network]}")
        write = write_orbax if format == "orbax" else write_safetensors
        write(outputs[network], arrays.pop(network), DTYPES[dtype])
        record[network] = {**recipes[network], "sha256": sha256(outputs[network])}
        write_record(target, record)
    if "text_encoder" in networks and release.tokenizer:
        _copy(release.tokenizer, target / release.tokenizer.name)


def export(weights: Path, target: Path, sizes: Sizes, *, say: Say = print) -> None:
    """Writes every network in `weights` back under the official names, exactly; `.pth` files become safetensors.

    Raises:
        InputError: no network there, or one that does not fit `sizes`.
    """
    networks = [n for n in NETWORKS if (weights / n).is_dir() or (weights / f"{n}.safetensors").is_file()]
    if not networks:
        raise InputError(f"{weights}: holds no weights, neither folders nor .safetensors of {', '.join(NETWORKS)}")
    for network in networks:
        arrays = {name: array.view(Mapped) for name, array in read_arrays(find_params(weights, network)).items()}
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


def _recipe(release: Release, slots: tuple[str, ...], arrays: Arrays, dtype: str, format: str) -> dict:
    """What a network of ours is made from and how: equal recipes make equal arrays."""
    parts = [release.parts[slot] for slot in slots]
    files = sorted(file for part in parts for file in part.checkpoint.files)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {
        "inputs": {file.relative_to(release.folder).as_posix(): sha256(file) for file in files},
        "dtype": dtype,
        "format": format,
        "layout": hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest(),
    }


def _refuse_other_formats(target: Path, outputs: Mapping[str, Path]) -> None:
    for network, output in outputs.items():
        for other in (target / (network + ending) for ending in ENDINGS.values()):
            if other != output and other.exists():
                raise InputError(f"{other}: holds the {network} in another format; remove it, or choose another folder")


def _is_done(output: Path, old: Mapping[str, Any] | None, network: str, recipe: Mapping[str, Any], say: Say) -> bool:
    recover_directory(output)
    if not old or not output.exists() or any(old.get(key) != value for key, value in recipe.items()):
        return False
    if sha256(output) != old.get("sha256"):
        return False
    say(f"{network}: {output} is there already, from the same inputs")
    return True


def _arrays(release: Release, slots: tuple[str, ...], sizes: Sizes, network: str) -> Arrays:
    return import_network(network, {slot: release.parts[slot].tensors() for slot in slots}, sizes)


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
