"""Devices: the mesh, and how arrays lie on it."""

from spatia_jax.parallel.mesh import data_mesh, replicated, split_batch, use_all_cores

__all__ = ["data_mesh", "replicated", "split_batch", "use_all_cores"]
