"""Line charts as PNG files, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatia_jax.io.images import write_png

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 440, 84, 60, 44, 24
_COLORS = ((61, 90, 204), (214, 93, 40), (31, 140, 98))
_INK, _GRID = (50, 50, 56), (225, 226, 230)


def log_chart(
    path: Path, title: str, x_name: str, y_name: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Writes points of each series, joined in order, on two logarithmic axes."""
    points = np.log10(np.concatenate([np.array(values, float) for values in series.values()]))
    low, high = points.min(0), points.max(0)
    margin = 0.06 * (high - low) + 0.02
    low, high = low - margin, high + margin
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    box = np.array([_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _TOP])  # left, bottom, right, top

    def place(values: np.ndarray) -> np.ndarray:
        return box[:2] + (np.log10(values) - low) / (high - low) * (box[2:] - box[:2])

    for axis in (0, 1):
        for tick in _ticks(low[axis], high[axis]):
            at = place(np.where(np.arange(2) == axis, tick, 10**low))[axis]
            ends = [(at, box[1]), (at, box[3])] if axis == 0 else [(box[0], at), (box[2], at)]
            draw.line(ends, fill=_GRID)
            where, anchor = ((at, box[1] + 8), "mt") if axis == 0 else ((box[0] - 8, at), "rm")
            draw.text(where, f"{tick:g}", fill=_INK, font=font, anchor=anchor)
    for index, (name, values) in enumerate(series.items()):
        color, line = _COLORS[index % len(_COLORS)], [tuple(place(np.array(value))) for value in values]
        draw.line(line, fill=color, width=2)
        for x, y in line:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        at = (box[0] + 14, box[3] + 16 + 22 * index)
        draw.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), fill=color)
        draw.text((at[0] + 12, at[1]), name, fill=_INK, font=font, anchor="lm")
    draw.text((_WIDTH / 2, 22), title, fill=_INK, font=ImageFont.load_default(16), anchor="mm")
    draw.text(((box[0] + box[2]) / 2, _HEIGHT - 16), x_name, fill=_INK, font=font, anchor="mm")
    draw.text((12, _TOP - 14), y_name, fill=_INK, font=font, anchor="lm")
    write_png(path, np.asarray(picture))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two logarithms."""
    ticks = [step * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= np.log10(tick) <= high]
