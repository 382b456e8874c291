"""The whole map update of one clip of the released size by stage: 21 keyframes of 704 x 1248, on the CPU.

    python -m benchmarks.mapper_stages --json outputs/mapper_stages.json

A procedural scene stands for the clip. The depth network is left out: the true depth, scaled by a smooth error, stands
for what it would say. Each stage is compiled before it is timed, and timed once. The stages and their order are those
of `stages.map_tracking` and `stages.remember`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import tyro

from spatia_jax import mapper, memory, splat
from spatia_jax.cameras import Cameras
from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data import procedural
from spatia_jax.errors import exit_status
from spatia_jax.io.atomic import write_json
from spatia_jax.mapper import tracking
from spatia_jax.mapper.motion import moving_pixels
from spatia_jax.memory import PointMap
from spatia_jax.splat import Projection


@dataclass(frozen=True)
class Args:
    """What to measure.

    Attributes:
        config: the experiment whose sizes and settings are used.
        keyframes: of the clip; the released opening clip of 121 frames has 21.
        scene: which procedural one.
        json: a file for the numbers.
    """

    config: Path = Path("configs/spatia_5b.py")
    keyframes: int = 21
    scene: int = 3
    json: Path | None = None


@dataclass(frozen=True)
class Clip:
    """k + 1 views, the first of them the anchor: cameras as told, frames in [0, 1], depth as the network might say."""

    cameras: Cameras
    frames: jax.Array
    depth: jax.Array
    true_depth: jax.Array


class Stages:
    """Runs functions, compiled before, and keeps their seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        compiled = jax.jit(function).lower(*arguments).compile()
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        self.seconds[name] = time.perf_counter() - start
        print(f"{name:32}{self.seconds[name]:9.2f} s", flush=True)
        return result


def make_clip(config: Experiment, args: Args) -> Clip:
    """A walk through a scene, told with errors of a centimetre and half a degree."""
    scene = procedural.sample_scene(args.scene)
    stride = config.memory.map_stride
    path = procedural.sample_path(args.scene, scene, stride * args.keyframes + 1, "wander")[::stride]
    seen = [procedural.render(scene, path[i : i + 1], jnp.zeros(1), config.clip.height, config.clip.width)
            for i in range(len(path))]  # fmt: skip
    depth = jnp.concatenate([view.depth for view in seen])
    noise = np.random.default_rng(0).normal(size=(len(path), 6)) * ([0.01] * 3 + [np.radians(0.5)] * 3)
    noise[0] = 0
    told = Cameras.from_se3(jaxlie.SE3.exp(jnp.asarray(noise, jnp.float32)) @ path.as_se3(), path.intrinsics)
    column = jnp.linspace(-1, 1, config.clip.width)
    frames = jnp.concatenate([view.color for view in seen]).astype(jnp.float32) / 255
    return Clip(told, frames, depth * (1.1 + 0.05 * column), depth)


def update_map(config: Experiment, clip: Clip, point_map: PointMap) -> dict[str, float]:
    """Seconds of every stage."""
    stage, tracked, mapping = Stages(), tracking.TrackingConfig(), config.mapper
    size = {"height": config.clip.height, "width": config.clip.width}
    shown, depth, told = clip.frames[1:], clip.depth[1:], clip.cameras[1:]

    def project(point_map: PointMap, cameras: Cameras) -> Projection:
        return splat.render(
            point_map.positions, point_map.colors, point_map.valid, cameras, **size, config=config.splat
        )

    def color(seen: Projection) -> jax.Array:
        return seen.color / jnp.maximum(seen.coverage, 1e-3)[..., None]

    def align(depth, shown, cameras, seen):
        return mapper.update(mapping, depth, shown, cameras, seen.depth, color(seen)).depth

    def fuse(depth, shown, cameras, seen, moving):
        return mapper.update(mapping, depth, shown, cameras, seen.depth, color(seen), moving, judge_motion=False)

    def insert(point_map, mapped, shown, witness, seen):
        stride, voxel = config.memory.pixel_stride, config.memory.voxel_size
        positions, colors, weights, valid, brought_by = mapper.select_points(mapped, shown, stride)
        valid &= ~mapper.blocks_views(positions, witness, seen.depth, mapping.free_tolerance)
        return memory.insert(
            point_map, positions, colors, weights, valid, provenance=1, voxel_size=voxel, keyframes=brought_by
        )

    def carve(point_map, mapped, shown):
        views = mapper.seen_through(
            point_map.positions, point_map.colors, mapped.cameras, mapped.depth, mapped.static, shown,
            depth_tolerance=tracked.carve_tolerance, color_tolerance=mapping.motion_color_tolerance,
        )  # fmt: skip
        return memory.remove(point_map, point_map.valid & (views >= tracked.carve_observed_views))

    seen = stage("projection of the map", project, point_map, clip.cameras)
    behind, seen = (jax.tree.map(lambda leaf, part=part: leaf[part], seen) for part in (slice(1), slice(1, None)))
    aligned = stage("alignment of the depth prior", align, depth, shown, told, seen)
    views = (
        tracking.Views(clip.frames[:1], behind.depth, clip.cameras[:1]),
        tracking.Views(shown, aligned, told),
        tracking.Views(seen.color, seen.depth, told, seen.coverage),
    )
    matches = stage("matching", lambda *views: tracking.match_views(tracked, *views), *views)
    track = stage("adjustment", lambda m, *views: tracking.adjust_views(tracked, m, *views), matches, *views)
    seen = stage("projection with found cameras", project, point_map, track.cameras)
    moving = stage(
        "motion", lambda *a: moving_pixels(tracked.motion, *a), shown, aligned, track.cameras, color(seen),
        seen.depth > 0,
    )  # fmt: skip
    mapped = stage("fusion", fuse, depth, shown, track.cameras, seen, moving)
    point_map = stage("carving", carve, point_map, mapped, shown)
    stage("insertion", insert, point_map, mapped, shown, clip.cameras[:1], behind)
    return stage.seconds


def main(args: Args) -> None:
    """Measures, prints a line at a time, writes --json."""
    config = load_experiment(args.config)
    clip = make_clip(config, args)
    print(
        f"{args.keyframes} keyframes of {config.clip.width} x {config.clip.height}, {os.cpu_count()} cores, "
        "without the depth network"
    )
    every = (slice(None, None, config.memory.pixel_stride),) * 2
    known = jnp.zeros(clip.true_depth.shape[1:], bool).at[every].set(True)
    given = memory.from_depth(clip.frames[0], clip.true_depth[0], clip.cameras[0], known)
    point_map = jax.jit(
        lambda *given: memory.insert(
            memory.empty(config.memory.capacity), *given,
            provenance=memory.OBSERVED, voxel_size=config.memory.voxel_size,
        )
    )(*given)  # fmt: skip
    seconds = update_map(config, clip, point_map)
    print(f"{'in all':32}{sum(seconds.values()):9.2f} s")
    if args.json:
        write_json(args.json, {"args": dataclasses.asdict(args) | {"config": str(args.config), "json": None},
                               "cores": os.cpu_count(), "seconds": seconds})  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Args, description=__doc__))))
