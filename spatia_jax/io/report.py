"""report.html: one file, without any address outside itself, that shows what a rollout did."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

import spatia_jax
from spatia_jax.io import charts
from spatia_jax.io.atomic import atomic_write

_NUM_COLUMNS = 5  # frames shown of each clip
_MAX_EMBEDDED_VIDEO = 8 * 2**20  # bytes; a longer video is linked by its name beside the report


@dataclass(frozen=True)
class ClipReport:
    """One clip: what the map showed, where it had holes, and what was generated.

    projection and frames: [t, h, w, 3] uint8; holes: [t, h, w] bool; references: [k, h, w, 3] uint8, the retrieved
    past frames; seconds by stage in the order in which the stages ran; num_points in the map after the clip.
    """

    prompt: str
    projection: np.ndarray
    holes: np.ndarray
    frames: np.ndarray
    seconds: Mapping[str, float]
    num_points: int
    references: np.ndarray | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class ClosedLoop:
    """How well the returning frame shows the place again: PSNR in dB, SSIM, and both frames [h, w, 3] uint8."""

    psnr: float
    ssim: float
    first: np.ndarray
    returned: np.ndarray


@dataclass(frozen=True)
class ReportData:
    """All that the report shows, as plain NumPy arrays.

    cam_from_world [t, 3, 4] of all frames in order; focal_x of the normalised intrinsics; positions [n, 3], colors
    [n, 3] uint8 and provenance [n] of the points in the map; capacity of the map; observed_points before clip 1.
    """

    title: str
    clips: Sequence[ClipReport]
    fps: float
    cam_from_world: np.ndarray
    focal_x: float
    positions: np.ndarray
    colors: np.ndarray
    provenance: np.ndarray
    observed_points: int
    capacity: int | None = None
    video: Path | None = None
    closed_loop: ClosedLoop | None = None
    start_image: np.ndarray | None = None
    unit: str = "m"
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: str | os.PathLike, data: ReportData) -> None:
    """Writes the page, atomically; it reads in light and dark, on a telephone and on paper."""
    style = resources.files("spatia_jax.io").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _header(data),
        _closed_loop(data.closed_loop),
        _clips(data),
        _maps(data),
        _charts(data),
        _settings(data),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _header(data: ReportData) -> str:
    prompts = list(dict.fromkeys(clip.prompt for clip in data.clips))
    prompt = f'<p class="prompt">{escape(prompts[0])}</p>' if len(prompts) == 1 else ""
    num_frames = sum(len(clip.frames) for clip in data.clips)
    total = sum(sum(clip.seconds.values()) for clip in data.clips)
    height, width = data.clips[0].frames.shape[1:3]
    facts = [
        ("clips", str(len(data.clips))),
        ("frames", f"{num_frames}, {width} × {height}"),
        ("video", f"{num_frames / data.fps:.1f} s at {data.fps:g} fps"),
        ("generated in", f"{total:.1f} s"),
        ("points in the map", f"{data.clips[-1].num_points:,}"),
    ]
    if data.closed_loop is not None:
        facts.insert(0, ("returning frame", f"{data.closed_loop.psnr:.1f} dB"))
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    start = "" if data.start_image is None else _figure(data.start_image, "the picture that it started from")
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in data.notes)
    return (
        f"<header><h1>{escape(data.title)}</h1>{prompt}{notes}</header>"
        f'<section class="hero">{_video(data)}<div>{start}<dl class="facts">{rows}</dl></div></section>'
    )


def _video(data: ReportData) -> str:
    if data.video is None:
        return _picture(data.clips[0].frames[0], "the first frame")
    name, size = Path(data.video).name, Path(data.video).stat().st_size
    source = escape(name)
    if size < _MAX_EMBEDDED_VIDEO:
        source = f"data:video/mp4;base64,{base64.b64encode(Path(data.video).read_bytes()).decode()}"
    return f'<video src="{source}" autoplay loop muted playsinline controls></video>'


def _closed_loop(score: ClosedLoop | None) -> str:
    if score is None:
        return ""
    difference = np.abs(score.first.astype(np.int16) - score.returned).mean(axis=-1)
    difference = np.clip(3 * difference, 0, 255).astype(np.uint8)
    pictures = [
        _figure(score.first, "the first view, as given"),
        _figure(score.returned, "the same view, on return"),
        _figure(difference, "absolute difference, three times"),
    ]
    return (
        "<section><h2>The place, seen again</h2>"
        f"<p>The path returns to its first view: <strong>PSNR {score.psnr:.2f} dB</strong>, "
        f'<strong>SSIM {score.ssim:.3f}</strong>.</p><div class="trio">{"".join(pictures)}</div></section>'
    )


def _clips(data: ReportData) -> str:
    one_prompt = len({clip.prompt for clip in data.clips}) == 1
    parts = ["<section><h2>Clip by clip</h2>"]
    for number, clip in enumerate(data.clips, start=1):
        facts = (
            f"{len(clip.frames)} frames · {sum(clip.seconds.values()):.1f} s · "
            f"{clip.num_points:,} points · holes {clip.holes.mean():.0%}"
        )
        prompt = "" if one_prompt else f'<p class="prompt">{escape(clip.prompt)}</p>'
        warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in clip.warnings)
        parts.append(
            f"<article><h3>Clip {number} <small>{facts}</small></h3>{prompt}{warnings}{_strip(clip)}</article>"
        )
    return "".join(parts) + "</section>"


def _strip(clip: ClipReport) -> str:
    """Projection, holes and generated frames of a few moments, one below the other."""
    shown = np.unique(np.linspace(0, len(clip.frames) - 1, _NUM_COLUMNS).round().astype(int))
    rows = [
        ("frame", [f'<span class="moment">{index + 1}</span>' for index in shown]),
        ("projection", [_picture(clip.projection[index], f"projection, frame {index + 1}") for index in shown]),
        (
            "holes",
            [_hole_picture(clip.projection[index], clip.holes[index], f"holes, frame {index + 1}") for index in shown],
        ),
        ("generated", [_picture(clip.frames[index], f"generated frame {index + 1}") for index in shown]),
    ]
    if clip.references is not None and len(clip.references):
        pictures = [_picture(reference, "a retrieved past frame") for reference in clip.references[: len(shown)]]
        rows.append(("retrieved", pictures + [""] * (len(shown) - len(pictures))))
    cells = "".join(
        f'<span class="row">{name}</span>' + "".join(cell or "<span></span>" for cell in row) for name, row in rows
    )
    return f'<div class="strip" style="--columns:{len(shown)}">{cells}</div>'


def _maps(data: ReportData) -> str:
    num_clips = len(data.clips)
    origin = charts.provenance_colors(data.provenance, num_clips)

    def drawn(colors: np.ndarray) -> str:
        half_angle = float(np.arctan(0.5 / data.focal_x))
        return charts.map_from_above(data.positions, colors, data.cam_from_world, half_angle=half_angle, unit=data.unit)

    entries = [(0, "observed"), *((clip, f"clip {clip}") for clip in range(1, num_clips + 1))]
    if num_clips > 8:
        entries = [(0, "observed"), (1, "clip 1"), (num_clips, f"clip {num_clips}")]
    legend = "".join(
        f'<li><i style="background:rgb{charts.clip_color(clip, num_clips)}"></i>{name}</li>' for clip, name in entries
    )
    return (
        "<section><h2>The map from above</h2>"
        "<p>Points up to the height of the cameras, in their own colours, and by the clip that first saw them.</p>"
        '<div class="pair">'
        f"<figure>{drawn(data.colors)}"
        "<figcaption>camera path over the points</figcaption></figure>"
        f"<figure>{drawn(origin)}"
        f'<figcaption><ul class="legend">{legend}</ul></figcaption></figure></div></section>'
    )


def _charts(data: ReportData) -> str:
    labels = [f"clip {number}" for number in range(1, len(data.clips) + 1)]
    counts = [data.observed_points, *(clip.num_points for clip in data.clips)]
    stages = list(dict.fromkeys(stage for clip in data.clips for stage in clip.seconds))
    legend = "".join(
        f'<li><i class="s{number % charts.NUM_STAGE_COLORS}"></i>{escape(stage)}</li>'
        for number, stage in enumerate(stages)
    )
    seconds = [clip.seconds for clip in data.clips]
    return (
        '<section class="pair"><figure><h2>Points in the map</h2>'
        f"{charts.growth_chart(counts, ['start', *labels], data.capacity)}</figure>"
        f'<figure><h2>Seconds by stage</h2><ul class="legend">{legend}</ul>'
        f"{charts.seconds_chart(seconds, labels, stages)}</figure></section>"
    )


def _settings(data: ReportData) -> str:
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in data.settings.items()
    )
    table = f"<details><summary>Settings</summary><table>{rows}</table></details>" if rows else ""
    return (
        f"<section>{table}</section><footer>Made by spatia_jax {spatia_jax.__version__}; manifest.json beside "
        "this file says from what, and how to make it again.</footer>"
    )


def _hole_picture(projection: np.ndarray, holes: np.ndarray, description: str) -> str:
    """Holes in the accent colour over the pale grey projection, so that one sees what is missing where."""
    grey = 110 + 0.45 * projection.mean(axis=-1, keepdims=True)
    return _picture(np.where(holes[..., None], [226, 110, 50], grey).astype(np.uint8), description, lossless=True)


def _picture(image: np.ndarray, description: str, *, lossless: bool = False) -> str:
    return f'<img src="{charts.data_uri(image, lossless=lossless)}" alt="{escape(description)}" loading="lazy">'


def _figure(image: np.ndarray, caption: str) -> str:
    return f"<figure>{_picture(image, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
