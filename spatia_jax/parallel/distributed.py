"""One program on many hosts: joined from what the launcher put into the environment.

    plain      COORDINATOR_ADDRESS=host:port NUM_PROCESSES=n PROCESS_ID=i
    SLURM      srun starts the processes and numbers them
    Cloud TPU  a TPU VM or a GKE job: JAX asks the machine's metadata

When a process dies, JAX's coordinator misses its heartbeat and ends all others with a message within
`HEARTBEAT_SECONDS` (60 by default); the next start of the same command resumes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from spatia_jax.errors import InputError

_PLAIN = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
T = TypeVar("T")


def initialize(environment: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes, if the environment says that there are any; call it before anything else of JAX.

    Returns: whether there are several processes.

    Raises:
        InputError: variables that contradict each other, or the others cannot be reached.
    """
    arguments = launch_arguments(environment)
    if arguments is None:
        return False
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=_number(environment, "HEARTBEAT_SECONDS", default=60)
        )
    except RuntimeError as error:
        raise InputError(f"the processes of this job did not find each other: {str(error).splitlines()[0]}") from error
    return jax.process_count() > 1


def launch_arguments(environment: Mapping[str, str]) -> dict | None:
    """What `jax.distributed.initialize` has to be told: nothing where JAX finds out itself; None: a single process.

    Raises:
        InputError: only some of the plain variables, or values that cannot be.
    """
    given = [name for name in _PLAIN if environment.get(name)]
    if given:
        if missing := [name for name in _PLAIN if name not in given]:
            raise InputError(
                f"{', '.join(given)} is set, but not {', '.join(missing)}; a job on several hosts needs all"
            )
        count, index = _number(environment, "NUM_PROCESSES"), _number(environment, "PROCESS_ID")
        if not 0 <= index < count:
            raise InputError(f"PROCESS_ID is {index}; it must lie between 0 and {count - 1} (NUM_PROCESSES is {count})")
        address = environment["COORDINATOR_ADDRESS"]
        if not address.rpartition(":")[2].isdigit():
            raise InputError(f"COORDINATOR_ADDRESS is {address!r}; it must be host:port, of process 0")
        return {"coordinator_address": address, "num_processes": count, "process_id": index}
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # of srun; a batch script itself has no such steps
        return {"cluster_detection_method": "slurm"}
    return {} if _is_cloud_tpu() else None


def first_alone(function: Callable[[], T]) -> T:
    """`function()` on process 0, then on the others: what it leaves on a shared disk is there for them."""
    if jax.process_count() == 1:
        return function()
    result = function() if jax.process_index() == 0 else None
    multihost_utils.sync_global_devices("first process done")
    return result if jax.process_index() == 0 else function()  # type: ignore[return-value]


def _is_cloud_tpu() -> bool:
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}; it must be a whole number")
    return int(text)
