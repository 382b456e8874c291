"""The whole map update of one clip of the released size by stage: 21 keyframes of 704 x 1248, on the CPU.

    python -m benchmarks.mapper_stages --json outputs/mapper_stages.json

A procedural scene stands for the clip. The depth network is left out: the true depth, scaled by a smooth error, stands
for what it would say. Each piece is compiled before it is timed, and timed once. They are those of `map_stage` and
`stages.remember`, in their order; drawing, aligning, matching and adjusting are timed for one round and come
`TrackingConfig.rounds` times.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import tyro

from spatia_jax import mapper, memory
from spatia_jax.cameras import Cameras
from spatia_jax.config import Experiment, load_experiment
from spatia_jax.data import procedural
from spatia_jax.errors import exit_status
from spatia_jax.io.atomic import write_json
from spatia_jax.map_stage import map_views
from spatia_jax.mapper import tracking
from spatia_jax.mapper.motion import moving_pixels
from spatia_jax.model import Model
from spatia_jax.splat import Projection
from spatia_jax.stages import carve, plain_color, project
from spatia_jax.state import World
from spatia_jax.world import new_world


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


def update_map(model: Model, clip: Clip, world: World) -> dict[str, float]:
    """Seconds of every piece of a memory update."""
    stage, config = Stages(), model.config
    tracked, mapping = config.mapper.tracking, config.mapper
    assert tracked is not None
    shown, depth, told = clip.frames[1:], clip.depth[1:], clip.cameras[1:]

    def align(depth, shown, seen):
        color = plain_color(Projection(seen.frames, seen.coverage, seen.depth))
        return mapper.update(mapping, depth, shown, seen.cameras, seen.depth, color).depth

    def fuse(depth, shown, cameras, seen, moving):
        return mapper.update(mapping, depth, shown, cameras, seen.depth, plain_color(seen), moving, judge_motion=False)

    def insert(world, mapped, shown, witness, seen):
        positions, colors, weights, valid, brought_by = mapper.select_points(mapped, shown, config.memory.pixel_stride)
        valid &= ~mapper.blocks_views(positions, witness, seen.depth, mapping.free_tolerance)
        return memory.insert(
            world.point_map, positions, colors, weights, valid,
            provenance=1, voxel_size=config.memory.voxel_size, keyframes=brought_by,
        )  # fmt: skip

    behind = stage("drawing the anchor", partial(project, model), world, clip.cameras[:1])
    seen = stage("drawing the map", partial(map_views, model), world, told)
    aligned = stage("aligning the depth prior", align, depth, shown, seen)
    anchor = tracking.Views(clip.frames[:1], behind.depth, clip.cameras[:1])
    views = anchor, tracking.Views(shown, aligned, told), seen
    matches = stage("matching", partial(tracking.match_views, tracked), *views)
    found = stage("adjusting", partial(tracking.adjust_views, tracked), matches, *views).cameras
    seen = stage("drawing with found cameras", partial(project, model), world, found)
    moving = stage(
        "motion", partial(moving_pixels, tracked.motion), shown, aligned, found, plain_color(seen), seen.depth > 0
    )
    mapped = stage("fusing", fuse, depth, shown, found, seen, moving)
    carved = stage("carving", partial(carve, model), world.point_map, mapped, shown)
    world = dataclasses.replace(world, point_map=carved)
    stage("inserting", insert, world, mapped, shown, clip.cameras[:1], behind)
    return stage.seconds


def main(args: Args) -> None:
    """Measures, prints a line at a time, writes --json."""
    config = load_experiment(args.config).tracked()
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
    model = Model(config)
    world = dataclasses.replace(new_world(model, jax.random.key(0)), point_map=point_map)
    seconds = update_map(model, clip, world)
    print(f"{'in all, one round':32}{sum(seconds.values()):9.2f} s")
    if args.json:
        write_json(args.json, {"args": dataclasses.asdict(args) | {"config": str(args.config), "json": None},
                               "cores": os.cpu_count(), "seconds": seconds})  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Args, description=__doc__))))
