"""What a run leaves behind: clips, world, video, point map, manifest, report; each written atomically.

    OUTPUT/clips/0000.npz   frames, latents, projection and references of a clip, lossless
    OUTPUT/world/           the state after the last clip: resume, continue or branch from it
    OUTPUT/video.mp4  point_map.ply  manifest.json  report.html

A clip is written before the world that follows it, so whatever a crash leaves can be resumed from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dm_pix
import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.io.atomic import atomic_write
from spatia_jax.io.report import ClipReport, ClosedLoop, ReportData, write_report
from spatia_jax.io.video import write_video
from spatia_jax.memory import OBSERVED, write_ply
from spatia_jax.state import Clip, World


@dataclass(frozen=True)
class KeptClip:
    """A clip as it is on disk: t frames.

    Attributes:
        frames, projection: [t, h, w, 3] uint8; holes: [t, h, w] bool; references: [k, h, w, 3] uint8.
        latents: [f, p, q, c] float32.
        seconds: by stage; num_points: in the map afterwards; report: scalars of the mapper.
    """

    frames: np.ndarray
    projection: np.ndarray
    holes: np.ndarray
    references: np.ndarray
    latents: np.ndarray
    seconds: dict[str, float]
    num_points: int
    report: dict[str, float]


def keep_clip(folder: Path, index: int, before: World, clip: Clip, seconds: dict[str, float]) -> None:
    """Writes clip `index`; `before` is the world that it was generated in, whose bank holds its references."""
    slots = np.asarray(clip.references)
    about = {
        "seconds": seconds,
        "num_points": int(clip.report["points"]),
        "report": {name: float(value) for name, value in clip.report.items()},
    }
    with atomic_write(clip_path(folder, index)) as temporary:
        np.savez_compressed(
            temporary,
            frames=np.asarray(clip.frames),
            projection=np.round(np.clip(np.asarray(clip.projection.color), 0, 1) * 255).astype(np.uint8),
            holes=np.asarray(clip.projection.holes),
            references=np.asarray(before.frame_bank.frames)[slots[slots >= 0]],
            latents=np.asarray(clip.latents, np.float32),
            about=json.dumps(about),
        )


def load_clip(folder: Path, index: int) -> KeptClip:
    """Reads what `keep_clip` wrote."""
    with np.load(clip_path(folder, index)) as arrays:
        about = json.loads(str(arrays["about"]))
        images = {name: arrays[name] for name in ("frames", "projection", "holes", "references", "latents")}
    return KeptClip(**images, **about)


def clip_path(folder: Path, index: int) -> Path:
    return folder / "clips" / f"{index:04d}.npz"


def closed_loop(
    first: np.ndarray, frames: np.ndarray, cameras: Cameras, *, tolerance: float = 1e-3
) -> ClosedLoop | None:
    """How well the last frame shows the given first picture again, if the path ends where it began (paper, Table 3).

    PSNR in dB and SSIM (11 x 11 Gaussian window, on colours in [0, 1]) as dm-pix computes them.
    """
    poses = np.asarray(cameras.cam_from_world)
    if len(frames) < 2 or np.abs(poses[0] - poses[-1]).max() > tolerance:
        return None
    a, b = (image.astype(np.float32) / 255 for image in (first, frames[-1]))
    return ClosedLoop(float(dm_pix.psnr(a, b)), float(dm_pix.ssim(a, b)), first, frames[-1])


def write_outputs(
    folder: Path,
    *,
    title: str,
    clips: Sequence[KeptClip],
    frames: np.ndarray,
    prompts: Sequence[str],
    cameras: Cameras,
    world: World,
    fps: float,
    photo: np.ndarray | None,
    warnings: Sequence[str],
    settings: dict[str, str],
) -> ClosedLoop | None:
    """Video, point map and report of a finished run; `frames` [t, h, w, 3] uint8 are the video's, one a camera."""
    write_video(folder / "video.mp4", frames, fps)
    write_ply(folder / "point_map.ply", world.point_map)
    valid = np.asarray(world.point_map.valid)
    provenance = np.asarray(world.point_map.provenance)[valid]
    # Of a world that goes on there is no photo; the first frame of this video stands for it.
    score = closed_loop(frames[0] if photo is None else photo, frames, cameras)
    shown = [
        ClipReport(
            prompt=prompt,
            projection=clip.projection,
            holes=clip.holes,
            frames=clip.frames,
            seconds=clip.seconds,
            num_points=clip.num_points,
            references=clip.references if len(clip.references) else None,
        )
        for clip, prompt in zip(clips, prompts, strict=True)
    ]
    data = ReportData(
        title=title,
        clips=shown,
        fps=fps,
        cam_from_world=np.asarray(cameras.cam_from_world),
        focal_x=float(cameras.intrinsics[0, 0]),
        positions=np.asarray(world.point_map.positions)[valid],
        colors=np.round(np.asarray(world.point_map.colors)[valid] * 255).astype(np.uint8),
        provenance=provenance,
        observed_points=int((provenance == OBSERVED).sum()),
        capacity=world.point_map.capacity,
        video=folder / "video.mp4",
        closed_loop=score,
        start_image=photo,
        settings=settings,
        notes=warnings,
    )
    write_report(folder / "report.html", data)
    return score
