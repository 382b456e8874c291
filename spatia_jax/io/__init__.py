"""Everything that enters or leaves as a file: images, video, manifest, report; written whole or not at all."""

from spatia_jax.io.atomic import atomic_directory, atomic_write, recover_directory, require_free_space
from spatia_jax.io.charts import contact_sheet
from spatia_jax.io.images import (
    Crop,
    adjust_intrinsics,
    fit_image,
    fit_map,
    read_depth,
    read_image,
    read_mask,
    write_png,
)
from spatia_jax.io.manifest import read_manifest, verify, write_manifest
from spatia_jax.io.progress import RolloutProgress
from spatia_jax.io.report import ClipReport, ClosedLoop, ReportData, write_report
from spatia_jax.io.video import read_video, write_video

__all__ = [
    "ClipReport",
    "ClosedLoop",
    "Crop",
    "ReportData",
    "RolloutProgress",
    "adjust_intrinsics",
    "atomic_directory",
    "atomic_write",
    "contact_sheet",
    "fit_image",
    "fit_map",
    "read_depth",
    "read_image",
    "read_manifest",
    "read_mask",
    "read_video",
    "recover_directory",
    "require_free_space",
    "verify",
    "write_manifest",
    "write_png",
    "write_report",
    "write_video",
]
