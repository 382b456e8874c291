"""Parameters as Orbax checkpoints: one folder a network, which a pod's hosts read in parallel, each its own pieces.

The tree has our names cut at the dots. Arrays are stored in pieces of at most 64 MB, so that a device reads little more
than what it keeps, and uncompressed: zstd saves 8 % of float32 noise, and writing takes several times as long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from spatia_jax.errors import InputError
from spatia_jax.io.atomic import atomic_directory
from spatia_jax.weights.streams import PIECE, Stacked, assemble, nbytes

_TOGETHER = 1 << 28  # bytes of parameters that are written at once: a write of its own costs three small files


def write_orbax(path: Path, tensors: Mapping[str, np.ndarray | Stacked], dtype: np.dtype | None = None) -> None:
    """Writes a checkpoint folder atomically, group by group of parameters.

    Takes about twice the bytes of the largest parameter in memory (0.8 GB at least): Orbax copies what it writes.

    `dtype` is that of the checkpoint; None keeps each tensor's own. Narrowing rounds to the nearest, ties to even.
    """
    handler = _InTurn(dtype)
    registry = type_handlers.create_type_handler_registry(
        (np.ndarray, handler), (Stacked, handler), (jax.Array, type_handlers.ArrayHandler())
    )
    tree = _nested(tensors)
    cut = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), tree)
    with atomic_directory(path) as folder:
        # Orbax names its temporary folder after the target: below ours, it goes with it whatever happens.
        inner = folder.absolute() / "checkpoint"
        orbax = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False, type_handler_registry=registry)
        with ocp.Checkpointer(orbax) as writer:
            writer.save(inner, args=ocp.args.PyTreeSave(tree, save_args=cut))
        for entry in list(inner.iterdir()):
            os.rename(entry, folder / entry.name)
        inner.rmdir()


def orbax_shapes(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and types of what a checkpoint holds; reads no data.

    Raises:
        InputError: not an Orbax checkpoint of a tree of arrays.
    """
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.metadata(path.absolute()).item_metadata
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{path}: not a whole Orbax checkpoint ({_first_line(error)})") from error
    if found is None:
        raise InputError(f"{path}: not a whole Orbax checkpoint (it lacks its _METADATA or its data)")
    leaves = jax.tree_util.tree_flatten_with_path(found.tree)[0]
    return {_name(at): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for at, leaf in leaves}


def read_orbax(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The arrays with the names, shapes and types of `wanted`, on the devices that its shardings say.

    Every device's piece is read and converted for itself. What has no sharding comes as a numpy array.

    Raises:
        InputError: the data are not whole.
    """

    def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    tree = _nested(wanted)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.args.PyTreeRestore(tree, restore_args=jax.tree.map(how, tree))
            found = reader.restore(path.absolute(), args=args)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a whole Orbax checkpoint ({_first_line(error)})") from error
    return {_name(at): leaf for at, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}


class _InTurn(type_handlers.NumpyHandler):
    """Writes arrays as numpy's are written, but group by group, and puts stacks together when their turn comes."""

    def __init__(self, dtype: np.dtype | None):
        super().__init__(deepcopy_host_arrays=False)
        self._dtype = dtype

    async def serialize(self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None) -> list:
        args = args or [ocp.SaveArgs()] * len(values)
        for group in self._groups(values):
            whole = [assemble(value, self._dtype) for value in values[group]]
            for written in await super().serialize(whole, infos[group], args[group]):
                written.result()
        return []

    def _groups(self, values: Sequence[Any]) -> Iterator[slice]:
        """Consecutive values of `_TOGETHER` bytes at most, or a single larger one."""
        start = size = 0
        for i, value in enumerate(values):
            more = nbytes(value, self._dtype)
            if i > start and size + more > _TOGETHER:
                yield slice(start, i)
                start, size = i, 0
            size += more
        yield slice(start, len(values))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *rooms, last = name.split(".")
        place = tree
        for room in rooms:
            place = place.setdefault(room, {})
        place[last] = leaf
    return tree


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no detail'}"
