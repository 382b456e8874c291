"""Batches for any number of hosts: what is in global batch i is a function of i alone, whoever reads it.

A chain of `grain.MapDataset`s is a function from an index to an element. Batch i of the whole job is the elements
i * size to (i + 1) * size of that chain, and each host reads its own contiguous part of every batch, so that the parts
of all hosts, one after another, are the batch that one host alone would read. The step of a run is therefore its whole
data position: `batches[step:]` goes on from there, on any number of hosts, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grain

from spatia_jax.errors import InputError


@dataclass(frozen=True)
class Host:
    """One of the readers of a job: the `index`-th of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise InputError(f"host {self.index} of {self.count}: expected an index from 0 to {self.count - 1}")


def shuffled(source: grain.sources.RandomAccessDataSource, seed: int) -> grain.MapDataset:
    """The elements of a source, endlessly, in another order every epoch."""
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def mixture(datasets: Sequence[grain.MapDataset], weights: Sequence[float]) -> grain.MapDataset:
    """Elements of several endless data sets in these proportions; from which the i-th comes is a function of i.

    Each data set keeps its own order, whatever it is mixed with.

    Raises:
        InputError: not one weight above 0 for each.
    """
    if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
        raise InputError(f"{len(datasets)} data sets with weights {tuple(weights)}: expected one each, above 0")
    total = sum(weights)
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, [w / total for w in weights])


def batched(elements: grain.MapDataset, batch_size: int, host: Host | None = None) -> grain.MapDataset:
    """A host's part of every batch of `batch_size`; without a host, whole batches.

    Raises:
        InputError: the hosts do not divide the batch.
    """
    host = host or Host()
    if batch_size < 1 or batch_size % host.count:
        raise InputError(f"a batch of {batch_size} for {host.count} hosts: it must be a multiple of {host.count}")
    return elements.batch(batch_size // host.count, drop_remainder=True)[host.index :: host.count]
