"""Devices: the mesh, and how arrays lie on it."""

from spatia_jax.parallel.checks import AXES, check_mesh
from spatia_jax.parallel.in_use import axis_sizes, batch_axes, on_every_device, platform, split_frames, spread_examples
from spatia_jax.parallel.mesh import data_mesh, replicated, split_batch, use_all_cores
from spatia_jax.parallel.sharding import (
    MeshConfig,
    batch_shardings,
    make_mesh,
    param_shardings,
    param_specs,
    state_shardings,
)

__all__ = [
    "AXES",
    "MeshConfig",
    "axis_sizes",
    "batch_axes",
    "batch_shardings",
    "check_mesh",
    "data_mesh",
    "make_mesh",
    "on_every_device",
    "param_shardings",
    "param_specs",
    "platform",
    "replicated",
    "split_batch",
    "split_frames",
    "spread_examples",
    "state_shardings",
    "use_all_cores",
]
