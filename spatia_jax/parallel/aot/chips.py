"""The TPU chips that programs are compiled for: their numbers, and slices of them that need no chip to exist.

Numbers are of Google's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs). HBM is taken as
decimal GB, which is the stricter reading. The pages give the interconnect of a chip in both directions together; a link
in one direction is that over twice the ports (6 in a 3D torus, 4 in 2D); that of v4 is an assumption. The clock
follows from the peak: products a cycle are cores x matrix units x side^2, 131,072 multiplications and additions a cycle
a core in v4 and v5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatia_jax.errors import InputError

LIBTPU = "libtpu==0.0.42.*"


@dataclass(frozen=True)
class Chip:
    """One chip of a generation.

    Attributes:
        hbm_bytes: memory that programs and their arrays have to fit into.
        peak_flops: bfloat16 operations a second.
        clock: cycles a second, in which XLA's estimates count.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second of one link of the interconnect in one direction.
        ring: an axis of a slice whose length is a multiple of this is closed to a ring.
    """

    hbm_bytes: int
    peak_flops: float
    clock: float
    hbm_bandwidth: float
    link_bandwidth: float
    ring: int


CHIPS = {
    "v4": Chip(32 * 10**9, 275e12, 1.05e9, 1.20e12, 50e9, 4),
    "v5e": Chip(16 * 10**9, 197e12, 1.50e9, 0.82e12, 50e9, 16),
    "v5p": Chip(95 * 10**9, 459e12, 1.75e9, 2.77e12, 100e9, 4),
    "v6e": Chip(32 * 10**9, 918e12, 1.75e9, 1.64e12, 100e9, 16),
}


@dataclass(frozen=True)
class Slice:
    """A slice of a pod: so many chips, wired as a grid or torus; `devices` can be compiled for, not run on."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each axis."""
        return tuple((np.max([d.coords for d in self.devices], axis=0) + 1).tolist())


def open_slice(name: str) -> Slice:
    """The slice called `name`, e.g. "v5p:4x4x4"; needs libtpu, but neither a TPU nor a network.

    Raises:
        InputError: no such chip or shape, or libtpu is not installed.
    """
    generation = name.partition(":")[0]
    if generation not in CHIPS:
        raise InputError(f"--topology {name}: chip {generation!r} is not known; write e.g. v5p:4x4x4 or v6e:8x8, with"
                         f" one of {', '.join(CHIPS)}")  # fmt: skip
    try:
        import libtpu  # noqa: F401 (its presence is the question)
    except ImportError:
        raise InputError(f"compiling for TPUs needs libtpu: pip install '{LIBTPU}'") from None
    # It would look for a TPU's metadata server, and allow one process of a machine at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        described = topologies.get_topology_desc(name, platform="tpu", **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology {name}: libtpu knows no such slice ({reason})") from None
    return Slice(name, CHIPS[generation], tuple(described.devices))
