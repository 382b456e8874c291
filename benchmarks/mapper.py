"""Bundle adjustment against Ceres (pyceres) and a NumPy Schur complement: 8 keyframes x 48 x 64 x 26 edges, on the CPU.

All solve one problem: a synthetic scene with matches of 0.5 px noise, poses 5 cm and 2 degrees off, depth 10 % off, two
poses known. Needs pyceres and pycolmap (`scripts/setup.sh parity`); without them Ceres is left out, and said so.

    python -m benchmarks.mapper --json outputs/mapper.json --plot outputs/mapper.png
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import tyro

from benchmarks import mapper_peers
from benchmarks.timing import medians
from spatia_jax.cameras import Cameras
from spatia_jax.errors import exit_status
from spatia_jax.io.atomic import atomic_write, write_json
from spatia_jax.mapper.bundle_adjustment import AdjustmentConfig, adjust
from spatia_jax.mapper.problem import Matches, Priors, Variables, max_degree
from spatia_jax.mapper.reprojection import pixel_grid, warp

SIZE = (48, 64)


@dataclass(frozen=True)
class Args:
    """What to measure.

    Attributes:
        keyframes: of the comparison with the peers.
        radius: edges join keyframes up to so far apart (8 keyframes, radius 2: 26 edges).
        iterations: of every solver.
        repeats: rounds; each calls every function once.
        scaling: also numbers of keyframes and edges beyond, ours alone.
        plot: a PNG file for a picture of the scaling; needs matplotlib (`scripts/setup.sh parity`).
        json: a file for the numbers.
    """

    keyframes: int = 8
    radius: int = 2
    iterations: int = 8
    repeats: int = 5
    scaling: bool = True
    plot: Path | None = None
    json: Path | None = None


def scene(keyframes: int, radius: int, noise_px: float = 0.5, seed: int = 0) -> tuple[Variables, Variables, Matches]:
    """Truth, a start away from it, and noisy matches."""
    generator = np.random.default_rng(seed)
    height, width = SIZE
    moves = generator.normal(size=(keyframes, 6)) * ([0.06] * 3 + [0.03] * 3)
    poses = jaxlie.SE3.exp(jnp.asarray(np.cumsum(moves, axis=0), jnp.float32))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    slope = generator.normal(size=(2, keyframes, 1, 1))
    depth = np.clip(2 + 0.5 * slope[0] * x + 0.5 * slope[1] * y + 0.3 * np.sin(9 * x + 7 * y), 0.8, 4)
    truth = Variables.start(
        Cameras.from_se3(poses, jnp.array([0.9, 1.2, 0.5, 0.5])), jnp.asarray(1 / depth, jnp.float32)
    )
    pairs = [(i, j) for i in range(keyframes) for j in range(keyframes) if 0 < abs(i - j) <= radius]
    source, target = (np.array(column) for column in zip(*pairs, strict=True))
    relative = jaxlie.SE3(poses.wxyz_xyz[target]) @ jaxlie.SE3(poses.wxyz_xyz[source]).inverse()
    seen, ratio, _, _ = jax.vmap(warp, (0, 0, 0, 0, None))(
        relative.as_matrix()[:, :3], truth.inverse_depth[source].reshape(len(pairs), -1),
        truth.lens[source], truth.lens[target], pixel_grid(*SIZE),
    )  # fmt: skip
    inside = (ratio > 0) & (seen >= 0).all(1) & (seen[:, 0] <= width - 1) & (seen[:, 1] <= height - 1)
    seen = jnp.swapaxes(seen, 1, 2) + noise_px * generator.normal(size=(len(pairs), height * width, 2))
    weights = jnp.broadcast_to(inside[..., None], seen.shape).astype(jnp.float32)
    matches = Matches(
        jnp.asarray(source), jnp.asarray(target), seen.astype(jnp.float32).reshape(-1, *SIZE, 2),
        weights.reshape(-1, *SIZE, 2), max_degree(source, keyframes),
    )  # fmt: skip
    xi = generator.normal(size=(keyframes, 6)) * ([0.05 / 3**0.5] * 3 + [np.radians(2) / 3**0.5] * 3)
    xi[:2] = 0
    start = dataclasses.replace(
        truth,
        poses=jaxlie.SE3.exp(jnp.asarray(xi, jnp.float32)) @ poses,
        inverse_depth=truth.inverse_depth * jnp.exp(0.1 * jnp.asarray(generator.normal(size=depth.shape), jnp.float32)),
    )
    return truth, start, matches


def as_arrays(start: Variables, matches: Matches) -> mapper_peers.Problem:
    """The problem for the peers, in float64."""
    edges = len(matches.source)
    return {
        "source": np.asarray(matches.source), "target": np.asarray(matches.target), "fixed": 2,
        "match": np.asarray(matches.pixels, np.float64).reshape(edges, -1, 2),
        "weight": np.asarray(matches.weights, np.float64).reshape(edges, -1, 2)[..., 0],
        "pixels": np.asarray(pixel_grid(*SIZE), np.float64).T, "lens": np.asarray(start.lens[0], np.float64),
        "pose": np.asarray(start.poses.as_matrix(), np.float64),
        "inverse_depth": np.asarray(start.inverse_depth, np.float64).reshape(len(start.lens), -1),
    }  # fmt: skip


def pose_rmse(poses: np.ndarray, truth: Variables) -> float:
    """Root mean square distance of camera centres from the truth, metres."""
    poses = np.asarray(poses, np.float64)
    centers = -np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
    return float(np.sqrt(np.square(centers - np.asarray(truth.cameras().centers)).sum(1).mean()))


def main(args: Args) -> None:
    """Measures, prints a table, writes --json."""
    truth, start, matches = scene(args.keyframes, args.radius)
    config = AdjustmentConfig(iterations=args.iterations)
    solve = jax.jit(partial(adjust, config=config))
    priors = Priors.none(start, 2)
    problem = as_arrays(start, matches)
    functions = {
        "ours": lambda: solve(matches, priors, start),
        "numpy": lambda: mapper_peers.numpy_schur(problem, args.iterations),
    }
    errors = {
        "ours": pose_rmse(functions["ours"]().variables.poses.as_matrix(), truth),
        "numpy": pose_rmse(functions["numpy"]()[0], truth),
    }
    ceres_seconds: list[float] = []
    try:
        import pyceres  # noqa: F401
        import pycolmap  # noqa: F401

        def ceres() -> None:
            poses, _, seconds = mapper_peers.ceres(problem, args.iterations, os.cpu_count() or 1)
            ceres_seconds.append(seconds["solve"])
            errors["ceres"] = pose_rmse(poses, truth)

        functions["ceres"] = ceres
    except ImportError as error:
        print(f"no {error.name}: Ceres is left out (`scripts/setup.sh parity` installs it)")
    seconds = medians(functions, args.repeats)
    if ceres_seconds:  # what it takes to build a problem from Python is not Ceres's fault
        seconds["ceres"] = float(np.median(ceres_seconds[1:]))
    print(
        f"{args.keyframes} keyframes, {len(matches.source)} edges, {args.iterations} iterations, {os.cpu_count()} cores"
    )
    converged = {name: errors[name] < 1.05 * min(errors.values()) for name in errors}
    for name, value in seconds.items():
        words = "" if converged[name] else f": not converged in {args.iterations} iterations"
        ratio = value / seconds["ours"]
        print(f"{name:8}{value:9.4f} s{ratio:8.1f} x ours   poses {1000 * errors[name]:.3f} mm off{words}")
    record: dict[str, Any] = {"seconds": seconds, "pose_rmse_m": errors, "converged": converged}
    if args.scaling:
        record["scaling"] = rows = scaling(args)
        if args.plot:
            draw(args, rows)
    if args.json:
        write_json(args.json, record)


BY_KEYFRAMES = ((8, 3), (16, 3), (32, 3), (64, 3))  # keyframes, radius
BY_EDGES = ((16, 1), (16, 2), (16, 3), (16, 5), (16, 8))


def scaling(args: Args) -> list[dict[str, float]]:
    """Ours alone, for more keyframes, and for more edges between 16 keyframes."""
    rows = []
    for keyframes, radius in dict.fromkeys(BY_KEYFRAMES + BY_EDGES):
        _, start, matches = scene(keyframes, radius)
        solve = jax.jit(partial(adjust, config=AdjustmentConfig(iterations=args.iterations)))
        priors = Priors.none(start, 2)
        edges = len(matches.source)
        taken = medians({"ours": lambda s=solve, m=matches, p=priors, x=start: s(m, p, x)}, args.repeats)["ours"]
        print(f"{keyframes:4} keyframes {edges:4} edges {taken:8.3f} s {1e3 * taken / edges:7.2f} ms an edge")
        rows.append({"keyframes": keyframes, "radius": radius, "edges": edges, "seconds": taken})
    return rows


def draw(args: Args, rows: list[dict[str, float]]) -> None:
    """Seconds over edges, as more keyframes or more pairs of them bring them."""
    from matplotlib.figure import Figure

    held = {(row["keyframes"], row["radius"]): (row["edges"], row["seconds"]) for row in rows}
    lines = {
        "8, 16, 32, 64 keyframes, each with 3 on either side": BY_KEYFRAMES,
        "16 keyframes, each with 1, 2, 3, 5, 8 on either side": BY_EDGES,
    }
    axes = (figure := Figure((7.2, 4.4), layout="constrained")).subplots()
    for name, chosen in lines.items():
        axes.loglog(*zip(*(held[key] for key in chosen), strict=True), "o-", label=name)
    axes.set(xlabel="edges (directed pairs of keyframes)", ylabel="seconds")
    axes.set_title(f"bundle adjustment, {args.iterations} iterations, 48 x 64 pixels a keyframe")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with atomic_write(args.plot or Path()) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Args, description=__doc__))))
