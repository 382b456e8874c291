"""The spatial memory: the point map, the bank of past frames, and what is retrieved from them."""

from spatia_jax.memory.frame_bank import FrameBank, empty_bank, remember
from spatia_jax.memory.panorama import panoramas, places
from spatia_jax.memory.ply import read_ply, write_ply
from spatia_jax.memory.point_map import (
    EDIT,
    EMPTY,
    MAX_WEIGHT,
    OBSERVED,
    PointMap,
    empty,
    from_depth,
    insert,
    recolor,
    remove,
)
from spatia_jax.memory.retrieval import CovisibleAssignment, RetrievalConfig, VoxelIoU, retrieve, retrieve_by_overlap
from spatia_jax.memory.visibility import visibility

__all__ = [
    "EDIT",
    "EMPTY",
    "MAX_WEIGHT",
    "OBSERVED",
    "CovisibleAssignment",
    "FrameBank",
    "PointMap",
    "RetrievalConfig",
    "VoxelIoU",
    "empty",
    "empty_bank",
    "from_depth",
    "insert",
    "panoramas",
    "places",
    "read_ply",
    "recolor",
    "remember",
    "remove",
    "retrieve",
    "retrieve_by_overlap",
    "visibility",
    "write_ply",
]
