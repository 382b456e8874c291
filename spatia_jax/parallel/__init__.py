"""Devices: the mesh, and how arrays lie on it."""

from spatia_jax.parallel.mesh import data_mesh, replicated, split_batch, use_all_cores
from spatia_jax.parallel.sharding import MeshConfig, make_mesh, param_shardings, param_specs

__all__ = [
    "MeshConfig",
    "data_mesh",
    "make_mesh",
    "param_shardings",
    "param_specs",
    "replicated",
    "split_batch",
    "use_all_cores",
]
