"""Mapper: what new frames add to the point map."""

from spatia_jax.mapper.filters import blocks_views, seen_through
from spatia_jax.mapper.prior import DepthPrior, Mapper
from spatia_jax.mapper.tracking import TrackingConfig
from spatia_jax.mapper.update import MapperConfig, MapUpdate, keyframe_numbers, select_points, update

__all__ = [
    "DepthPrior",
    "MapUpdate",
    "Mapper",
    "MapperConfig",
    "TrackingConfig",
    "blocks_views",
    "keyframe_numbers",
    "seen_through",
    "select_points",
    "update",
]
