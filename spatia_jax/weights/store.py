"""Parameters as safetensors files: one file a network, names are paths in the pytree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_write

Params = Any


def save_params(path: str | Path, params: Params, dtype: Any = None) -> None:
    """Writes a pytree of arrays atomically, as `dtype` if given (bfloat16 halves the size)."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    tensors = {_name(path): np.ascontiguousarray(np.asarray(leaf if dtype is None else leaf.astype(dtype)))
               for path, leaf in leaves}  # fmt: skip
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def load_params(path: str | Path, abstract: Params) -> Params:
    """Reads what `save_params` wrote into the structure and dtypes of `abstract`.

    Raises:
        InputError: no such file, not safetensors, or other names or shapes; all of them are listed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {_name(key_path): leaf for key_path, leaf in leaves}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tensors[name].shape}, not {leaf.shape}"
        for name, leaf in wanted.items()
        if name in tensors and tensors[name].shape != leaf.shape
    ]
    if problems:
        raise InputError(f"{path} does not fit this config: " + "; ".join(problems))
    return jax.tree.unflatten(structure, [jnp.asarray(tensors[n], leaf.dtype) for n, leaf in wanted.items()])


def _name(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator=".")
