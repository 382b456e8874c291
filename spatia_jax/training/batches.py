"""Batches by number: batch i is a function of i alone, and each host reads only its own rows of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatia_jax.data.pipeline import Host, batched, mixture
from spatia_jax.errors import InputError
from spatia_jax.parallel import MeshConfig, make_mesh
from spatia_jax.parallel.sharding import BATCH_AXES


@dataclass(frozen=True)
class Batches:
    """Endless batches of `size` rows, each batch from one of several endless data sets of rows.

    Attributes:
        rows: the data sets; weights: the share of the batches that comes from each.
    """

    rows: tuple[grain.MapDataset, ...]
    size: int
    weights: tuple[float, ...] = (1.0,)

    def part(self, host: Host) -> grain.MapDataset:
        """A host's part of every batch, in the order of the whole."""
        parts = [batched(rows, self.size, host) for rows in self.rows]
        return mixture(parts, self.weights)

    def __getitem__(self, step: int) -> Any:
        """The whole batch of a step."""
        return self.part(Host())[step]


def together(parts: Sequence[Batches], weights: Sequence[float]) -> Batches:
    """Batches of several data sets in these proportions (above 0), each batch of one of them."""
    weighted = [(part, weight / sum(weights) / sum(part.weights)) for part, weight in zip(parts, weights, strict=True)]
    shares = tuple(weight * own for part, weight in weighted for own in part.weights)
    return Batches(tuple(rows for part in parts for rows in part.rows), parts[0].size, shares)


def training_mesh(config: MeshConfig, batch_size: int) -> Mesh:
    """The device mesh of a run; where `data` is 1, it becomes as many as the devices left and the batch allow.

    Raises:
        InputError: more devices are asked for than there are, or the batch does not divide.
    """
    available, others = jax.device_count(), config.num_devices // config.data
    if config.num_devices > available:
        sizes = " x ".join(f"{name} {size}" for name, size in dataclasses.asdict(config).items())
        raise InputError(f"mesh: {sizes} is {config.num_devices} devices; there are {available}")
    rows = config.slices * config.fsdp
    if batch_size % (config.data * rows):
        raise InputError(
            f"a batch (of one accumulated part) of {batch_size} cannot be split over slices {config.slices} x data "
            f"{config.data} x fsdp {config.fsdp}; it must be a multiple of {config.data * rows}"
        )
    data = config.data if config.data > 1 else math.gcd(batch_size // rows, available // others)
    whole = dataclasses.replace(config, data=data)
    return make_mesh(whole, jax.devices()[: whole.num_devices])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the axes that cut a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def part_of_this_host(mesh: Mesh, batch_size: int) -> Host:
    """Which part of every batch this process has to read.

    Processes whose devices differ only along `context` or `tensor` read the same rows.
    """
    pieces = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = sorted({(piece[0].start or 0, piece[0].stop or batch_size) for piece in pieces})  # type: ignore[index]
    first, size = rows[0][0], rows[-1][1] - rows[0][0]
    if batch_size % size or first % size:
        raise InputError(f"the mesh leaves a process rows {first} to {first + size} of {batch_size}: not an equal part")
    return Host(first // size, batch_size // size)


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """This host's rows of a batch as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
