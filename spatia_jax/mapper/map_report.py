"""report.html of a mapped sequence: path, map from above, keyframes and their depth; one file without addresses."""

from __future__ import annotations

import os
from html import escape
from importlib import resources

import numpy as np
from PIL import Image

from spatia_jax.io import charts
from spatia_jax.io.atomic import atomic_write
from spatia_jax.mapper.sequence import Sequence
from spatia_jax.mapper.stream import MappedSequence

_SHOWN = 6  # keyframes


def write_map_report(path: str | os.PathLike, given: Sequence, frames: np.ndarray, mapped: MappedSequence) -> None:
    """Writes the page, atomically."""
    style = resources.files("spatia_jax.io").joinpath("report.css").read_text(encoding="utf-8")
    unit = "m" if given.depth is not None or given.cameras is not None else "units"
    title = f"map of {given.names[0]} … {given.names[-1]}"
    body = "".join([_header(title, given, mapped), _maps(mapped, unit), _strip(frames, given, mapped)])
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _header(title: str, given: Sequence, mapped: MappedSequence) -> str:
    came = [name for name, has in (("poses", given.cameras), ("depth", given.depth)) if has is not None]
    facts = {
        "frames": len(given.frames),
        "keyframes": int(mapped.graph.count),
        "points": f"{int(mapped.point_map.num_points):,}",
        "loops": len(mapped.loops),
        "adjustments of all": mapped.closures,
        "came with": ", ".join(came) or "frames only",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<header><h1>{escape(title)}</h1><dl class="facts">{cells}</dl></header>'


def _maps(mapped: MappedSequence, unit: str) -> str:
    valid = np.asarray(mapped.point_map.valid)
    positions = np.asarray(mapped.point_map.positions)[valid]
    colors = (np.asarray(mapped.point_map.colors)[valid] * 255).astype(np.uint8)
    poses = np.asarray(mapped.cameras.cam_from_world)
    half_angle = float(np.arctan(0.5 / float(mapped.cameras.intrinsics[0, 0])))
    above = charts.map_from_above(positions, colors, poses, half_angle=half_angle, unit=unit)
    # A quarter turn of the scene about the first camera's x axis: what was in front is below. The drawing looks down
    # the y axis of the first pose: an unturned one is put there.
    first = poses[0, :, :3]
    quarter = first.T @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ first
    turned = np.concatenate([poses[:, :, :3] @ quarter.T, poses[:, :, 3:]], axis=2)
    center = -turned[0, :, :3].T @ turned[0, :, 3]
    turned = np.concatenate([np.column_stack([first, -first @ center])[None], turned])
    side = charts.map_from_above(positions @ quarter.T, colors, turned, half_angle=half_angle, unit=unit)
    return (
        '<section><h2>The map</h2><div class="pair">'
        f"<figure>{above}<figcaption>from above, up to the cameras' height, with their path</figcaption></figure>"
        f"<figure>{side}<figcaption>from the front</figcaption></figure></div></section>"
    )


def _strip(frames: np.ndarray, given: Sequence, mapped: MappedSequence) -> str:
    """Some keyframes, their depth (near is bright), and the pixels that their neighbours confirm."""
    count = int(mapped.graph.count)
    slots = np.unique(np.linspace(0, count - 1, min(count, _SHOWN)).astype(int))
    numbers = np.asarray(mapped.graph.frames)[slots]
    inverse = np.asarray(mapped.graph.variables.inverse_depth)[slots]
    low, high = np.quantile(inverse, [0.02, 0.98])
    shade = (np.clip((inverse - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    size = (320, round(320 * frames.shape[1] / frames.shape[2]))

    def picture(image: np.ndarray, words: str, how: Image.Resampling) -> str:
        scaled = np.asarray(Image.fromarray(image).resize(size, how))
        return f'<img src="{charts.data_uri(scaled)}" alt="{escape(words)}" loading="lazy">'

    rows: list[tuple[str, list[str]]] = [("frame", []), ("depth", []), ("confirmed", [])]
    for slot, number, depth in zip(slots, numbers, shade, strict=True):
        name = given.names[number]
        rows[0][1].append(picture(frames[number], name, Image.Resampling.BILINEAR))
        rows[1][1].append(picture(depth, f"depth of {name}", Image.Resampling.NEAREST))
        sure = (mapped.static[slot] * 255).astype(np.uint8)
        rows[2][1].append(picture(sure, f"confirmed pixels of {name}", Image.Resampling.NEAREST))
    cells = "".join(f'<span class="row">{name}</span>' + "".join(images) for name, images in rows)
    return f'<section><h2>Keyframes</h2><div class="strip" style="--columns:{len(slots)}">{cells}</div></section>'
