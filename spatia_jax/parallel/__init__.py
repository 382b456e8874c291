"""Devices: the mesh, and how arrays lie on it."""

from spatia_jax.parallel.mesh import data_mesh, replicated, split_batch, use_all_cores
from spatia_jax.parallel.sharding import (
    MeshConfig,
    make_mesh,
    on_every_device,
    param_shardings,
    param_specs,
    split_frames,
)

__all__ = [
    "MeshConfig",
    "data_mesh",
    "make_mesh",
    "on_every_device",
    "param_shardings",
    "param_specs",
    "replicated",
    "split_batch",
    "split_frames",
    "use_all_cores",
]
