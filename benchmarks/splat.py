"""The point renderer against a numba splat with the same output, on all cores of this machine.

The cloud is the procedural world seen from a path through it, as the mapper would store it; the views are on that
path. `ratio` is our time over numba's. Beside it: what PyTorch3D's CPU rasteriser needs at its measured cost per
(pixel, point), and Open3D's one-pixel projection, which leaves holes and blends nothing. Many views are timed once,
single views as medians of interleaved calls. Takes half an hour at the default sizes.

    python -m benchmarks.splat --json outputs/splat.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import splat_numba
from benchmarks.timing import medians
from spatia_jax.cameras import Cameras
from spatia_jax.data import procedural
from spatia_jax.errors import exit_status
from spatia_jax.io.atomic import write_json
from spatia_jax.splat import SplatConfig, render
from spatia_jax.splat.projection import pixel_centers
from spatia_jax.splat.render import Projection

PYTORCH3D_NS = 1.77  # per (pixel, point), one thread: 1.74 to 1.80 measured, spec/splat.md
CONFIG = SplatConfig()
Cloud = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Args:
    """What to measure.

    Attributes:
        points: sizes of the cloud.
        views: how many views one call renders.
        height, width: in pixels.
        repeats: rounds for single views; each calls every function once.
        scaling: also render `max(views)` views of the middle cloud with one core.
        only_ours: print our seconds for the first cloud and the most views, and nothing else; `scaling` calls this.
        json: a file for the numbers.
    """

    points: tuple[int, ...] = (100_000, 1_000_000, 5_000_000)
    views: tuple[int, ...] = (1, 121)
    height: int = 704
    width: int = 1248
    repeats: int = 5
    scaling: bool = True
    only_ours: bool = False
    json: Path | None = None


def main(args: Args) -> None:
    """Measures, prints a row at a time, writes --json."""
    clouds, path = world(args)
    if args.only_ours:
        print(once(ours_of(args, clouds[0], path[: max(args.views)], backward=False)))
        return
    rows = [
        row(args, cloud, path, views, direction)
        for cloud in clouds
        for views in args.views
        for direction in ("forward", "forward+backward")
    ]
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "height": args.height, "width": args.width}
    report |= {"radius": CONFIG.radius, "points_per_pixel": CONFIG.points_per_pixel, "rows": rows}
    if args.scaling:
        report["scaling"] = scaling(args)
        print("scaling:", json.dumps(report["scaling"]))
    if args.json:
        write_json(args.json, report)


def world(args: Args) -> tuple[list[Cloud], Cameras]:
    """Clouds (positions, colours) of the sizes asked for, and a camera path through them."""
    scene = procedural.sample_scene(3)
    path = procedural.sample_path(3, scene, max(121, *args.views), "wander")
    sources = path[:: max(1, len(path) // 16)]
    pixels = 1.15 * max(args.points) / len(sources)  # some see past the scene
    height = int(np.ceil((pixels * 9 / 16) ** 0.5 / 8)) * 8
    width = int(np.ceil(pixels / height / 8)) * 8
    positions, colors = [], []
    for i in range(len(sources)):
        view = procedural.render(scene, sources[i : i + 1], jnp.zeros(1), height, width)
        positions.append(sources[i : i + 1].unproject(view.depth)[0].reshape(-1, 3))
        colors.append(np.asarray(view.color, np.float32).reshape(-1, 3) / 255)
    cloud = np.concatenate(positions).astype(np.float32), np.concatenate(colors)
    seen = np.flatnonzero(np.isfinite(cloud[0]).all(axis=1))
    chosen = np.random.default_rng(0).permutation(seen)
    return [(cloud[0][chosen[:n]], cloud[1][chosen[:n]]) for n in args.points], path


def row(args: Args, cloud: Cloud, path: Cameras, views: int, direction: str) -> dict[str, Any]:
    """Seconds for a call that renders `views` views."""
    cameras = path[:views] if views > 1 else path[60:61]
    backward = direction == "forward+backward"
    ours, peer = ours_of(args, cloud, cameras, backward), numba_of(args, cloud, cameras, backward)
    if views == 1:
        seconds = medians({"ours": ours, "numba": peer}, args.repeats)
    else:
        seconds = {name: once(function) for name, function in (("ours", ours), ("numba", peer))}
    pairs = args.height * args.width * len(cloud[0]) * views
    result = {
        "points": len(cloud[0]), "views": views, "direction": direction,
        "ours_s": seconds["ours"], "numba_s": seconds["numba"], "ratio": seconds["ours"] / seconds["numba"],
        "pytorch3d_forward_s_by_constant": pairs * PYTORCH3D_NS * 1e-9,
    }  # fmt: skip
    if views == 1 and not backward:
        result["open3d_one_pixel_s"] = open3d_seconds(args, cloud, cameras)
        result["psnr_to_numba_db"] = agreement(ours(), peer())
    print(json.dumps(result), flush=True)
    return result


def once(function: Callable[[], Any]) -> float:
    """Seconds of one call; its functions are compiled before."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def ours_of(args: Args, cloud: Cloud, cameras: Cameras, backward: bool) -> Callable[[], Any]:
    """A call of ours, compiled."""
    valid, size = jnp.ones(len(cloud[0]), bool), {"height": args.height, "width": args.width}

    def loss(positions, colors, cameras):
        seen = render(positions, colors, valid, cameras, config=CONFIG, **size)
        return (seen.color * _cotangent(args)[0]).sum() + (seen.coverage * _cotangent(args)[1]).sum()

    def pull(positions, colors, cameras):
        return jax.grad(loss, argnums=(0, 1, 2))(positions, colors, cameras)

    def draw(positions, colors, cameras):
        return render(positions, colors, valid, cameras, config=CONFIG, **size)

    operands = jnp.asarray(cloud[0]), jnp.asarray(cloud[1]), cameras
    compiled = jax.jit(pull if backward else draw).lower(*operands).compile()
    return lambda: compiled(*operands)


def _cotangent(args: Args) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = args.height, args.width
    return rng.standard_normal((*shape, 3), np.float32), rng.standard_normal(shape, np.float32)


def numba_of(args: Args, cloud: Cloud, cameras: Cameras, backward: bool) -> Callable[[], Any]:
    """A call of the peer: views one after another, compiled by a first call with few points."""
    x, y = pixel_centers(args.height, args.width)
    pixels = np.asarray(cameras.intrinsics) * np.array([args.width, args.height] * 2)
    packed = np.concatenate([np.asarray(cameras.cam_from_world).reshape(-1, 12), pixels], axis=1).astype(np.float32)
    to_image, to_coverage = _cotangent(args)
    disc = np.float32(CONFIG.radius), CONFIG.points_per_pixel

    def draw(cloud, packed):
        return [splat_numba.render(*cloud, camera, x, y, *disc) for camera in packed]

    def pull(cloud, packed):
        total: list[Any] = [0, 0, []]
        for camera in packed:
            points, colors, pose = splat_numba.render_and_pull(*cloud, camera, x, y, *disc, to_image, to_coverage)
            total = [total[0] + points, total[1] + colors, [*total[2], pose]]
        return total

    function = pull if backward else draw
    function((cloud[0][:1000], cloud[1][:1000]), packed[:1])
    return lambda: function(cloud, packed)


def agreement(ours: Projection, peer: list) -> float:
    """PSNR between the two pictures; their projections round differently."""
    return float(-10 * np.log10(np.mean((np.asarray(ours.color[0]) - peer[0][0]) ** 2) + 1e-30))


def open3d_seconds(args: Args, cloud: Cloud, cameras: Cameras) -> float | None:
    """Open3D's one-pixel z-buffer; None where it cannot be loaded."""
    try:
        import open3d as o3d
    except (ImportError, OSError):
        return None
    cloud3d = o3d.t.geometry.PointCloud(o3d.core.Tensor(cloud[0]))
    cloud3d.point.colors = o3d.core.Tensor(cloud[1])
    fx, fy, cx, cy = np.asarray(cameras.intrinsics[0], np.float64) * np.array([args.width, args.height] * 2)
    matrix = o3d.core.Tensor(np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]))
    pose = o3d.core.Tensor(np.vstack([np.asarray(cameras.cam_from_world[0], np.float64), [0, 0, 0, 1]]))

    def project():
        return cloud3d.project_to_rgbd_image(args.width, args.height, matrix, pose, depth_scale=1.0, depth_max=100.0)

    return medians({"open3d": project}, args.repeats)["open3d"]


def scaling(args: Args) -> dict[str, Any]:
    """Seconds for `max(views)` views of the middle cloud with one core and with all, each in a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    points, views = sorted(args.points)[len(args.points) // 2], max(args.views)
    command = [sys.executable, "-m", "benchmarks.splat", "--points", str(points), "--views", str(views), "--only-ours"]
    sizes = ["--height", str(args.height), "--width", str(args.width)]
    seconds = {}
    for name, some in (("one core", cores[:1]), ("all cores", cores)):
        ran = subprocess.run(
            [*command, *sizes], check=True, capture_output=True, text=True,
            preexec_fn=lambda some=some: os.sched_setaffinity(0, some),
        )  # fmt: skip
        seconds[name] = float(ran.stdout.split()[-1])
    efficiency = seconds["one core"] / seconds["all cores"] / len(cores)
    return {"points": points, "views": views, "cores": len(cores), "seconds": seconds, "efficiency": efficiency}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Args, description=__doc__))))
