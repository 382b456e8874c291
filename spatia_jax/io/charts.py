"""The drawings of the report: the map from above, two charts (inline SVG that follows the page's colours), sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

EDIT = 2**30  # provenance of points that a user put in, see memory/

NUM_STAGE_COLORS = 8  # s0 ... s7 in report.css
_MAP_SIZE = 560  # pixels of the longer side
_MARGIN = 0.06
_NUM_FRUSTA = 9
# Provenance: what was observed is grey, clips run from violet to yellow, edits are green.
_OBSERVED, _EDITED = (138, 143, 152), (31, 160, 98)
_CLIP_RAMP = np.array([[91, 63, 209], [181, 57, 158], [238, 111, 77], [246, 196, 69]], float)


def data_uri(image: np.ndarray, *, lossless: bool = False) -> str:
    """A uint8 image ([h, w, 3], [h, w, 4] or grey) as an address that holds the picture itself."""
    kind, options = ("png", {}) if lossless else ("jpeg", {"quality": 90, "subsampling": 0})
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]], gap: int = 4) -> UInt8[np.ndarray, "y x 3"]:
    """Equally large pictures in rows on white, `gap` pixels apart; shorter rows end in white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    size = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = gap + y * (height + gap), gap + x * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def provenance_colors(provenance: Int[np.ndarray, " n"], num_clips: int) -> UInt8[np.ndarray, "n 3"]:
    """The colour that tells which clip a point came from; `clip_color` gives the same one for the legend."""
    table = np.array([_OBSERVED, *(clip_color(clip, num_clips) for clip in range(1, num_clips + 1))], np.uint8)
    colors = table[np.clip(provenance, 0, num_clips)]
    return np.where((provenance == EDIT)[:, None], np.array(_EDITED, np.uint8), colors)


def clip_color(clip: int, num_clips: int) -> tuple[int, int, int]:
    """Colour of clip 1 ... num_clips; 0 is the colour of observed points."""
    if clip == 0:
        return _OBSERVED
    at = (clip - 1) / max(num_clips - 1, 1) * (len(_CLIP_RAMP) - 1)
    red, green, blue = (int(np.interp(at, range(len(_CLIP_RAMP)), channel)) for channel in _CLIP_RAMP.T)
    return red, green, blue


def map_from_above(
    positions: Float[np.ndarray, "n 3"],
    colors: UInt8[np.ndarray, "n 3"],
    cam_from_world: Float[np.ndarray, "t 3 4"],
    *,
    half_angle: float,
    unit: str,
) -> str:
    """SVG of the points seen from above, with the camera path, its viewing cones, and a scale bar.

    "Above" is against the first camera's y axis and the page's upward direction is where that camera looks. Points
    above the highest camera are left out, or the ceiling would hide the room. `half_angle` (radians) is half the
    horizontal field of view; `unit` names the unit of length.
    """
    rotations = cam_from_world[:, :, :3]
    centers = -np.einsum("tij,ti->tj", rotations, cam_from_world[:, :, 3])
    to_page = np.stack([rotations[0, 0], -rotations[0, 2], -rotations[0, 1]])  # right, down the page, up in the world
    points, path = positions @ to_page.T, centers @ to_page.T
    kept = points[:, 2] <= path[:, 2].max() + 1e-6
    points, colors = points[kept], colors[kept]

    reach = np.quantile(points[:, :2], [0.02, 0.98], axis=0) if len(points) else path[:, :2]
    low = np.minimum(reach[0], path[:, :2].min(axis=0))
    high = np.maximum(reach[-1], path[:, :2].max(axis=0))
    span = max(float((high - low).max()), 1e-3)
    low, high = low - _MARGIN * span, high + _MARGIN * span
    scale = _MAP_SIZE / float((high - low).max())
    width, height = (int(np.ceil(side)) for side in (high - low) * scale)

    raster = _raster((points[:, :2] - low) * scale, points[:, 2], colors, height, width)
    pixels = (path[:, :2] - low) * scale
    forward = rotations[:, 2] @ to_page[:2].T
    picture = f'<image href="{data_uri(raster, lossless=True)}" width="{width}" height="{height}"/>'
    parts = [picture, _path_marks(pixels, forward, half_angle), _scale_bar(scale, height, unit)]
    return _svg("map", width, height, "the point map from above", parts)


def _raster(pixels: np.ndarray, heights: np.ndarray, colors: np.ndarray, height: int, width: int) -> np.ndarray:
    """RGBA picture of the points, higher ones on top; few points are drawn larger so that surfaces close."""
    size = int(np.clip(np.sqrt(2 * height * width / max(len(pixels), 1)), 2, 5))
    raster = np.zeros((height, width, 4), np.uint8)
    order = np.argsort(heights, kind="stable")
    corners = np.floor(pixels[order] - size / 2 + 0.5).astype(int)
    colors = np.concatenate([colors[order], np.full((len(order), 1), 255, np.uint8)], axis=1)
    # Each point as a size x size block; of equal indices the last assignment, the highest point, stays.
    block = np.stack(np.meshgrid(range(size), range(size), indexing="ij"), -1).reshape(-1, 2)
    columns, rows = (corners[:, None] + block).reshape(-1, 2).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    raster[rows[inside], columns[inside]] = np.repeat(colors, size * size, axis=0)[inside]
    return raster


def _path_marks(path: np.ndarray, forward: np.ndarray, half_angle: float) -> str:
    length = 0.06 * _MAP_SIZE
    cones = []
    for index in np.unique(np.linspace(0, len(path) - 1, _NUM_FRUSTA).astype(int)):
        corners = [path[index]]
        for sign in (-1, 1):
            cosine, sine = np.cos(half_angle), sign * np.sin(half_angle)
            x, y = forward[index]
            corners.append(path[index] + length * np.array([cosine * x - sine * y, sine * x + cosine * y]))
        cones.append(f'<polygon class="cone" points="{_coordinates(corners)}"/>')
    line = _coordinates(path)
    (x0, y0), (x1, y1) = path[0], path[-1]
    returned = np.hypot(x1 - x0, y1 - y0) < 0.02 * _MAP_SIZE
    marks = f'<circle class="start" cx="{x0:.1f}" cy="{y0:.1f}" r="5"/>' + _label(
        x0, y0, "start, end" if returned else "start"
    )
    if not returned:
        marks += f'<circle class="end" cx="{x1:.1f}" cy="{y1:.1f}" r="5"/>' + _label(x1, y1, "end")
    return (
        f'{"".join(cones)}<polyline class="path-halo" points="{line}"/><polyline class="path" points="{line}"/>{marks}'
    )


def _label(x: float, y: float, text: str) -> str:
    at_right_edge = x > 0.8 * _MAP_SIZE
    anchor, shift = ("end", -9) if at_right_edge else ("start", 9)
    return f'<text class="mark" x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{text}</text>'


def _scale_bar(scale: float, height: int, unit: str) -> str:
    length = _round_step(0.2 * _MAP_SIZE / scale)
    x1, y = 14 + length * scale, height - 14
    return (
        f'<path class="scale" d="M14 {y - 4}V{y}H{x1:.1f}V{y - 4}"/>'
        f'<text class="mark" x="{x1 + 7:.1f}" y="{y + 2}">{length:g} {escape(unit)}</text>'
    )


def growth_chart(counts: Sequence[int], labels: Sequence[str], capacity: int | None) -> str:
    """SVG line of the number of points in the map after each clip (`counts[0]`: before the first)."""
    width, height, left, right, top, bottom = 480, 220, 46, 14, 14, 26
    step = _round_step(max(counts) / 3)
    ceiling = step * np.ceil(max(counts) / step)
    x = np.linspace(left, width - right, max(len(counts), 2))[: len(counts)]
    y = height - bottom - np.array(counts) / ceiling * (height - top - bottom)
    parts = []
    for value in np.arange(0, ceiling + step / 2, step):
        at = height - bottom - value / ceiling * (height - top - bottom)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    area = f"{x[0]:.1f},{height - bottom} {_coordinates(zip(x, y, strict=True))} {x[-1]:.1f},{height - bottom}"
    parts.append(f'<polygon class="area" points="{area}"/>')
    parts.append(f'<polyline class="line" points="{_coordinates(zip(x, y, strict=True))}"/>')
    every = int(np.ceil(len(counts) / 9))
    full = f" of at most {capacity:,}" if capacity else ""
    for index, (a, b, count, label) in enumerate(zip(x, y, counts, labels, strict=True)):
        title = f"<title>{escape(label)}: {count:,} points{full}</title>"
        parts.append(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="4">{title}</circle>')
        if index % every == 0:
            anchor = "end" if index == len(counts) - 1 and index else "middle"
            parts.append(f'<text x="{a:.1f}" y="{height - 8}" text-anchor="{anchor}">{escape(label)}</text>')
    return _svg("chart", width, height, "points in the map", parts)


def seconds_chart(seconds: Sequence[Mapping[str, float]], labels: Sequence[str], stages: Sequence[str]) -> str:
    """SVG of one stacked bar a clip: seconds by stage, in the order (and the colours s0, s1, ...) of `stages`."""
    width, left, right, row, bar = 480, 56, 52, 32, 18
    totals = [sum(clip.values()) for clip in seconds]
    scale = (width - left - right) / max(max(totals), 1e-9)
    parts = []
    for index, (clip, label, total) in enumerate(zip(seconds, labels, totals, strict=True)):
        y, x = 8 + index * row, float(left)
        parts.append(f'<text x="{left - 9}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        for number, stage in enumerate(stages):
            length = clip.get(stage, 0.0) * scale
            if length > 0:
                drawn = max(length - 1.5, 0.5)  # a sliver of the page between neighbours
                box = f'x="{x:.1f}" y="{y}" width="{drawn:.1f}" height="{bar}"'
                title = f"<title>{escape(label)}, {escape(stage)}: {clip[stage]:.2f} s</title>"
                parts.append(f'<rect class="s{number % NUM_STAGE_COLORS}" {box}>{title}</rect>')
            x += length
        parts.append(f'<text class="total" x="{x + 6:.1f}" y="{y + 13}">{total:.1f} s</text>')
    height = 8 + len(seconds) * row
    return _svg("chart", width, height, "seconds by stage", parts)


def _svg(kind: str, width: int, height: int, description: str, parts: Sequence[str]) -> str:
    opening = f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{description}">'
    return f"{opening}{''.join(parts)}</svg>"


def _coordinates(points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _round_step(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value`."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(power * max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9) or step == 1))


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
