"""A network's parameters on disk: one safetensors file, or one Orbax folder. Names are paths in the pytree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write
from spatia_jax.weights.checkpoints import open_checkpoint
from spatia_jax.weights.orbax import orbax_shapes, read_orbax

Params = Any


def save_params(path: str | Path, params: Params, dtype: Any = None) -> None:
    """Writes a pytree of arrays as safetensors, atomically, as `dtype` if given (bfloat16 halves the size)."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    tensors = {_name(path): np.ascontiguousarray(np.asarray(leaf if dtype is None else leaf.astype(dtype)))
               for path, leaf in leaves}  # fmt: skip
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def find_params(folder: Path, network: str) -> Path:
    """Where a network lies in a folder of weights: `<network>.safetensors`, or the Orbax folder `<network>`.

    Raises:
        InputError: neither is there, or both.
    """
    file, directory = folder / f"{network}.safetensors", folder / network
    if file.is_file() and directory.is_dir():
        raise InputError(f"{folder}: holds the {network} twice, as {file.name} and as {directory.name}/; remove one")
    if not file.is_file() and not directory.is_dir():
        raise InputError(f"{folder}: no weights of the {network}: neither {file.name} nor {directory.name}/ (Orbax)")
    return file if file.is_file() else directory


def misfits(path: Path, abstract: Params) -> list[str]:
    """Every name or shape in which the parameters at `path` differ from `abstract`; reads headers only.

    Raises:
        InputError: not a whole safetensors file or Orbax checkpoint.
    """
    found, wanted = _shapes(path), _flat(abstract)
    return [
        *(f"missing {name}" for name in wanted if name not in found),
        *(f"unknown {name}" for name in found if name not in wanted),
        *(
            f"{name} has shape {found[name].shape}, not {leaf.shape}"
            for name, leaf in wanted.items()
            if name in found and found[name].shape != leaf.shape
        ),
    ]


def load_params(path: Path, abstract: Params) -> Params:
    """Reads parameters into the structure, dtypes and shardings of `abstract`, whose leaves are ShapeDtypeStructs.

    A device reads and converts its own pieces; the whole is never put together in host memory. Without a sharding,
    an array goes to the default device.

    Raises:
        InputError: no such file or folder, not whole, or other names or shapes; all of them are listed.
    """
    if problems := misfits(path, abstract):
        raise InputError(f"{path} does not fit this config: " + "; ".join(problems))
    wanted = _flat(abstract)
    if path.is_dir():
        arrays = read_orbax(path, wanted)
        arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    else:
        tensors = open_checkpoint(path)
        arrays = {name: _placed(tensors[name], leaf) for name, leaf in wanted.items()}
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])


def read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """All arrays of a network by name, in host memory: views of a safetensors file, or an Orbax folder read whole.

    Raises:
        InputError: not whole.
    """
    return read_orbax(path, orbax_shapes(path)) if path.is_dir() else open_checkpoint(path)


def _placed(tensor: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.sharding is None:
        return jnp.asarray(tensor, leaf.dtype)

    def piece(index: Any) -> np.ndarray:
        return tensor[index].astype(leaf.dtype, copy=False)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)


def _shapes(path: Path) -> Mapping[str, Any]:
    return orbax_shapes(path) if path.is_dir() else open_checkpoint(path)


def _flat(abstract: Params) -> dict[str, jax.ShapeDtypeStruct]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]}


def _name(key_path: tuple) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator=".")
