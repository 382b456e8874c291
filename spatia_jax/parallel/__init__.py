"""Devices: the mesh, and how arrays lie on it."""

from spatia_jax.parallel.mesh import column_mesh, data_mesh, replicated, split_batch, split_columns, use_all_cores

__all__ = ["column_mesh", "data_mesh", "replicated", "split_batch", "split_columns", "use_all_cores"]
