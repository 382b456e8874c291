"""A world as a folder: `arrays.npz` and `world.json`; written atomically, loaded only where it fits."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_directory, recover_directory
from spatia_jax.state import World

_FORMAT = 1
_ADDED = {"path_from_map": np.eye(3, 4)}  # arrays that older worlds lack, and what they meant by that


def save_world(path: str | Path, world: World, config: Experiment) -> None:
    """Writes a world over what was at `path`; a crash leaves the old one or the new one, whole."""
    arrays = {_name(key_path): np.asarray(_plain(leaf)) for key_path, leaf in _leaves(world)}
    about = {
        "format": _FORMAT,
        "experiment": config.name,
        "fingerprint": config.world_fingerprint(),
        "clips": int(world.clip_index),
        "points": int(world.point_map.num_points),
    }
    with atomic_directory(path) as folder:
        np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        (folder / "world.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load_world(path: str | Path, template: World, config: Experiment) -> World:
    """The world saved at `path`.

    Args:
        path: a folder written by `save_world`.
        template: a world of the same config, for structure (arrays or ShapeDtypeStructs).
        config: what it will be used with.

    Raises:
        InputError: no such folder, unreadable, or saved under a config of other sizes.
    """
    path = Path(path).absolute()
    recover_directory(path)
    if not (path / "world.json").is_file():
        raise InputError(f"{path} is not a saved world: it has no world.json")
    try:
        about = json.loads((path / "world.json").read_text(encoding="utf-8"))
        arrays = _ADDED | dict(np.load(path / "arrays.npz"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a saved world: {error}") from error
    if about.get("format") != _FORMAT:
        raise InputError(f"{path} was saved in format {about.get('format')}; this version reads format {_FORMAT}")
    if about.get("fingerprint") != config.world_fingerprint():
        raise InputError(
            f"{path} was saved by config {about.get('experiment')!r} with other clip or memory sizes than "
            f"{config.name!r}; open it with the config that is in its manifest.json"
        )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    missing = [_name(key_path) for key_path, _ in leaves if _name(key_path) not in arrays]
    if missing:
        raise InputError(f"{path} lacks the arrays {', '.join(missing)}")
    values = [_like(arrays[_name(key_path)], leaf) for key_path, leaf in leaves]
    return jax.tree.unflatten(treedef, values)


def _leaves(world: World):
    return jax.tree_util.tree_flatten_with_path(world)[0]


def _name(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator=".")


def _plain(leaf) -> jax.Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _like(array: np.ndarray, leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return jnp.asarray(array, leaf.dtype)
