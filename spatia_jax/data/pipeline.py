"""Batches for any number of hosts: what is in global batch i is a function of i alone, whoever reads it.

A chain of `grain.MapDataset`s is a function from an index to an element. Batch i of the whole job is elements
[i * batch, (i + 1) * batch) of that chain, and each host reads its own contiguous part of every batch, so that the
parts of all hosts, one after another, are the batch that one host alone would read. The step of a run is therefore its
whole data position: `batches[step:]` goes on from there, on any number of hosts, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence as Source
from dataclasses import dataclass
from typing import Any

import grain
import jax

from spatia_jax.errors import InputError


@dataclass(frozen=True)
class Host:
    """One of the processes of a job: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise InputError(f"host {self.index} of {self.count}: expected an index from 0 to {self.count - 1}")

    @classmethod
    def current(cls) -> Host:
        """This process, as `jax.distributed` has numbered it."""
        return cls(jax.process_index(), jax.process_count())


def host_slice(batch_size: int, host: Host) -> slice:
    """The part of every global batch that a host reads; InputError when the hosts do not divide it."""
    if batch_size % host.count:
        raise InputError(f"a batch of {batch_size} for {host.count} hosts: it must be a multiple of {host.count}")
    share = batch_size // host.count
    return slice(host.index * share, (host.index + 1) * share)


def shuffled(source: grain.sources.RandomAccessDataSource, seed: int) -> grain.MapDataset:
    """The elements of a source, endlessly, in another order every epoch."""
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def mixture(datasets: Source[grain.MapDataset], weights: Source[float]) -> grain.MapDataset:
    """Elements of several endless data sets in these proportions; which one is next is a function of the index.

    Each keeps its own order: a data set that is added does not change that of the others.
    """
    if len(datasets) != len(weights) or min(weights, default=0) <= 0:
        raise InputError(f"{len(datasets)} data sets with weights {tuple(weights)}: expected one each, above 0")
    total = sum(weights)
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, [w / total for w in weights])


def batched(elements: grain.MapDataset, batch_size: int, host: Host | None = None) -> grain.MapDataset:
    """This host's part of batches of `batch_size`; without a host, whole batches."""
    host = host or Host()
    part = host_slice(batch_size, host)
    if host.count > 1:
        elements = _PartOfEveryBatch(elements, batch_size, part)
    return elements.batch(part.stop - part.start, drop_remainder=True)


class _PartOfEveryBatch(grain.MapDataset):
    """Of every `batch_size` elements of the parent, those of a slice."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, part: slice):
        super().__init__(parent)
        self._batch_size, self._first, self._share = batch_size, part.start, part.stop - part.start

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._share

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._share)
        return self._parent[batch * self._batch_size + self._first + place]
