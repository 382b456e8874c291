"""What the inpainter is trained on: true views of scenes, and what points of other views of the same scene show there.

A folder of shards like that of `training.examples`. Views are those of a camera that walks out for half of a video, as
far as the holes of a video go. Every map is of one of its views, three of four with the depth network's idea of its
depth, as at the start of a video, the others with the true one. Views are kept at the inpainter's own scale, and
rendered at it: that is what makes thousands of scenes cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from spatia_jax import memory
from spatia_jax.cameras import Cameras
from spatia_jax.data.pipeline import shuffled
from spatia_jax.data.procedural import KINDS, render, sample_path, sample_scene
from spatia_jax.data.procedural.paths import FRAMES_PER_SECOND
from spatia_jax.io.atomic import atomic_write
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed, to_unit
from spatia_jax.pyramid import shrink
from spatia_jax.stages import look_around
from spatia_jax.training.batches import Batches
from spatia_jax.training.examples import Rows, load_examples

_PHOTOS, _VIEWS, _CLIPS = 4, 6, 4  # of a scene: photos, views shown of the map of each; clips of the video


def make_viewer(model: Model) -> Callable:
    """`view(params, frame, depth, photo, estimated, targets) -> {"color", "coverage", "panorama"}`, bytes; jitted.

    What the points of one frame [h, w, 3] uint8 show in v targets; photo: its Cameras []; estimated: bool, whether the
    depth network's depth replaces the true one [h, w].
    """
    config = model.config.inpainter
    assert config is not None
    scale = config.scale

    def view(
        params: Params, frame: Array, depth: Array, photo: Cameras, estimated: Bool[Array, ""], targets: Cameras
    ) -> dict[str, Array]:
        depth = jnp.where(estimated, model.estimate_depth(params, to_signed(frame[None]))[0], depth)
        positions, colors, _, valid = memory.from_depth(to_unit(frame), depth, photo, jnp.ones(depth.shape, bool))
        color, coverage, panorama, _ = look_around(model, positions, colors, valid, targets)
        color, coverage = shrink(color, coverage, scale)
        pictures = {"color": color, "coverage": coverage, "panorama": panorama}
        return {name: jnp.round(255 * picture).astype(jnp.uint8) for name, picture in pictures.items()}

    return jax.jit(view)


def scene_views(model: Model, params: Params, view: Callable, seed: int) -> list[dict[str, np.ndarray]]:
    """A row for each map of a scene: `view`'s pictures, the truth, and the cameras that they belong to."""
    clip, inpainter = model.config.clip, model.config.inpainter
    assert inpainter is not None
    rng, scene, length = np.random.default_rng([seed, 13]), sample_scene(seed), clip.frames_of(_CLIPS)
    kind = KINDS[seed % len(KINDS)] if rng.random() < 0.25 else "there_and_back"
    out = (length + 1) // 2  # then it comes back
    path = sample_path(seed, scene, length if kind == "there_and_back" else out, kind)[:out]

    def look(numbers: np.ndarray, shrunk: int):
        times = jnp.asarray(numbers / FRAMES_PER_SECOND, jnp.float32)
        return render(scene, path[numbers], times, clip.height // shrunk, clip.width // shrunk)

    photos = np.append(0, rng.integers(out, size=_PHOTOS - 1))
    numbers = rng.integers(out, size=(_PHOTOS, _VIEWS))
    shown, truth = look(photos, 1), np.asarray(look(numbers.ravel(), inpainter.scale).color)
    rows = []
    for i, (photo, chosen) in enumerate(zip(photos, numbers, strict=True)):
        cameras, estimated = path[chosen], i < _PHOTOS - 1
        pictures = view(params, shown.color[i], shown.depth[i], path[photo], estimated, cameras)
        row = jax.tree.map(np.asarray, pictures) | {"truth": truth[i * _VIEWS : (i + 1) * _VIEWS]}
        rows.append(row | {"pose": np.asarray(cameras.cam_from_world), "intrinsics": np.asarray(cameras.intrinsics)})
    return rows


def build_views(
    model: Model,
    params: Params,
    directory: Path,
    *,
    shard_size: int = 64,
    say: Callable[[str], None] = print,
) -> None:
    """Writes views of the config's procedural scenes into shards under `directory`; `params` has the depth network."""
    view, world = make_viewer(model), model.config.procedural
    directory.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, world.scenes, shard_size)):
        path, end = directory / f"views-{shard:05d}.npz", min(first + shard_size, world.scenes)
        if path.exists():
            continue
        rows = [
            row for index in range(first, end) for row in scene_views(model, params, view, world.first_seed + index)
        ]
        stacked: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        with atomic_write(path) as temporary:
            np.savez(temporary, **stacked)
        say(f"views: {end}/{world.scenes} scenes")


def view_batches(directory: Path, *, batch_size: int, seed: int) -> Batches:
    """Endless batches of maps with v views each, some mirrored, all tinted.

    Returns:
        `{"color", "truth": [b, v, p, q, 3], "coverage": [b, v, p, q], "panorama": [b, v, r, c, 5]}`, uint8; `pose`
        [b, v, 3, 4] and `intrinsics` [b, v, 4].
    """

    def vary(row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        gain = rng.uniform(0.85, 1.15, 3)
        varied = dict(row)
        for name in ("color", "truth"):
            varied[name] = np.clip(np.rint(row[name] * gain), 0, 255).astype(np.uint8)
        around = np.clip(np.rint(row["panorama"][..., :3] * gain), 0, 255).astype(np.uint8)
        varied["panorama"] = np.concatenate([around, row["panorama"][..., 3:]], axis=-1)
        return mirrored(varied) if rng.integers(2) else varied

    return Batches((shuffled(Rows(load_examples(directory, "views")), seed).random_map(vary),), batch_size)


def mirrored(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same views in a world whose x axis points the other way."""
    flipped = {name: np.ascontiguousarray(row[name][:, :, ::-1]) for name in ("color", "truth", "coverage", "panorama")}
    other = np.array([-1.0, 1.0, 1.0], np.float32)
    pose = other[:, None] * row["pose"] * np.append(other, np.float32(1.0))
    intrinsics = np.array([0.0, 0.0, 1.0, 0.0], np.float32) + np.array([1, 1, -1, 1], np.float32) * row["intrinsics"]
    return {**flipped, "pose": pose, "intrinsics": intrinsics}
