"""How well the mapper finds cameras and depth of a real sequence whose poses and depth are known (7-Scenes layout)."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Float

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper.bundle_adjustment import calibrated_variance
from spatia_jax.mapper.problem import Priors, Variables
from spatia_jax.mapper.sequence import Sequence, read_sequence
from spatia_jax.mapper.stream import StreamConfig, map_stream
from spatia_jax.mapper.window import Window, WindowConfig, map_window, window_pairs

ROWS = 48  # of the grid
START_DEPTH = 2.0  # where nothing is known of depth
SENSOR_SIGMA = 0.02  # relative error of a sensor's depth, its misregistration with the colour included
# Parallax allows depth where the adjustment itself expects this relative error or less, with the noise of the matches
# taken from their own residuals (`calibrated_variance`) and the uncertainty of the poses counted in.
SEEN_SIGMA = 0.05


@dataclass(frozen=True)
class Alignment:
    """target = scale * rotation @ source + shift."""

    scale: float
    rotation: np.ndarray
    shift: np.ndarray


def align(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]) -> Alignment:
    """The similarity that brings points nearest to their targets (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = float((singular * signs).sum() / max((a**2).sum(), 1e-12))
    return Alignment(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def pose_errors(found: Cameras, truth: Cameras) -> tuple[float, float, Alignment]:
    """Root mean square distance of the aligned camera centres, mean angle in degrees, and the alignment.

    Angles are after the rotation that brings the orientations nearest: that of the centres is free to turn about the
    path where it is straight.
    """
    a, b = np.asarray(found.centers, np.float64), np.asarray(truth.centers, np.float64)
    fit = align(a, b)
    distance = np.linalg.norm(fit.scale * a @ fit.rotation.T + fit.shift - b, axis=1)
    mine, theirs = np.asarray(found.rotation, np.float64), np.asarray(truth.rotation, np.float64)
    u, _, vt = np.linalg.svd(np.einsum("vji,vjk->ik", theirs, mine))
    world = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    turned = mine @ world.T @ np.swapaxes(theirs, 1, 2)
    cosine = np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return float(np.sqrt((distance**2).mean())), float(np.degrees(np.arccos(cosine)).mean()), fit


def depth_errors(
    window: Window, variance: Float[np.ndarray, "v h w"], truth: Float[np.ndarray, "v h w"], scale: float
) -> dict[str, float]:
    """Median relative errors of depth against a sensor.

    `depth_median_rel` is over the pixels where parallax allows depth: where the adjustment expects a relative error of
    at most `SEEN_SIGMA`; `depth_expected_rel` is the median error that it expects there. The other keys: the same with
    the scale of the path's alignment in place of the depth's own median ratio, all pixels, and the share of those that
    count.

    Args:
        variance: of inverse depth, as the adjustment expects it.
    """
    depth = 1 / np.asarray(window.solution.variables.inverse_depth)
    sigma = np.sqrt(variance) * depth
    known = np.isfinite(truth) & (truth > 0)
    seen = known & (sigma <= SEEN_SIGMA)

    def error(where: np.ndarray, factor: float | None) -> float:
        if not where.any():
            return float("nan")
        ratio = depth[where] / truth[where]
        return float(np.median(np.abs(ratio * (1 / np.median(ratio) if factor is None else factor) - 1)))

    return {
        "depth_median_rel": error(seen, None),
        "depth_expected_rel": float(0.6745 * np.median(sigma[seen])) if seen.any() else float("nan"),
        "depth_median_rel_path_scale": error(seen, scale),
        "depth_median_rel_all": error(known, None),
        "depth_share": float(seen.sum() / max(known.sum(), 1)),
    }


def perturbed(cameras: Cameras, metres: float, degrees: float, seed: int) -> Cameras:
    """Cameras with noise of these standard deviations (length of the vector); the first stays."""
    generator = np.random.default_rng(seed)
    xi = generator.normal(size=(len(cameras), 6)) / 3**0.5 * ([metres] * 3 + [np.radians(degrees)] * 3)
    xi[0] = 0
    return Cameras.from_se3(jaxlie.SE3.exp(jnp.asarray(xi, jnp.float32)) @ cameras.as_se3(), cameras.intrinsics)


def grid_depth(depth: Float[np.ndarray, "v h w"], rows: int) -> Float[np.ndarray, "v rows columns"]:
    """Median of the readings (> 0) of each cell; 0 where there are none."""
    frames, height, width = depth.shape
    step = height // rows
    cells = depth.reshape(frames, rows, step, width // step, step).swapaxes(2, 3).reshape(frames, rows, -1, step**2)
    cells = np.sort(np.where(cells > 0, cells, np.inf), axis=-1)
    count = np.isfinite(cells).sum(-1)
    median = np.take_along_axis(cells, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(count > 0, median, 0.0).astype(np.float32)


def evaluate_window(
    sequence: Sequence, *, noise_m: float, noise_deg: float, no_prior: bool, given_depth: bool, seed: int,
    config: WindowConfig, radius: int = 3,
) -> dict:  # fmt: skip
    """Maps the frames of a sequence with known poses together, and compares."""
    assert sequence.cameras is not None
    truth, count = sequence.cameras, len(sequence.frames)
    height, width = sequence.frames.shape[1:3]
    if height % ROWS or width % (height // ROWS):
        raise InputError(f"frames of {width}x{height}: expected a height that is a multiple of {ROWS} and square cells")
    columns = width // (height // ROWS)
    start_cameras = perturbed(truth, noise_m, noise_deg, seed)
    if no_prior:
        start_cameras = Cameras(jnp.broadcast_to(truth.cam_from_world[:1], (count, 3, 4)), truth.intrinsics)
    sensor = None if sequence.depth is None else grid_depth(sequence.depth, ROWS)
    if given_depth and sensor is None:
        raise InputError("--given-depth: the sequence has no depth")
    start = Variables.start(start_cameras, jnp.full((count, ROWS, columns), 1 / START_DEPTH))
    priors = Priors.none(start, 1).with_depth(jnp.full((count, ROWS, columns), START_DEPTH), 1.0)
    if given_depth and sensor is not None:
        known = sensor > 0
        start = Variables.start(start_cameras, jnp.asarray(1 / np.where(known, sensor, START_DEPTH)))
        priors = priors.with_depth(jnp.asarray(sensor), SENSOR_SIGMA)
    if not no_prior:
        priors = priors.with_poses(start_cameras, max(noise_m, 1e-3), max(np.radians(noise_deg), 1e-3))
    images = jnp.asarray(sequence.frames, jnp.float32) / 255
    began = time.perf_counter()
    window = jax.block_until_ready(map_window(config, images, window_pairs(count, radius), start, priors))
    seconds = time.perf_counter() - began
    found = window.solution.variables.cameras()
    ate, rotation, fit = pose_errors(found, truth)
    result = {"ate_m": ate, "rotation_deg": rotation, "ate_start_m": pose_errors(start_cameras, truth)[0]}
    if no_prior:
        result["ate_start_m"] = float(
            np.sqrt(((np.asarray(truth.centers) - np.asarray(truth.centers).mean(0)) ** 2).sum(1).mean())
        )
    if sensor is not None:
        variance, factor = jax.jit(calibrated_variance, static_argnums=3)(
            window.matches, priors, window.solution.variables, config.adjustment
        )
        result["match_sigma_px"] = config.match_sigma_px * float(factor) ** 0.5
        result |= depth_errors(window, np.asarray(variance), sensor, fit.scale)
    return result | {"scale": fit.scale, "keyframes": count, "seconds": seconds}


def load_window(folder: Path, start: int, stride: int, keyframes: int | None) -> Sequence:
    """`keyframes` frames (None: all there are) of a sequence with poses."""
    sequence = read_sequence(folder)
    if sequence.cameras is None:
        raise InputError(f"--sequence {folder}: missing poses; the measurement needs frame-*.pose.txt to compare with")
    if keyframes is None:
        keyframes = len(range(start, len(sequence.frames), max(stride, 1)))
    chosen = start + stride * np.arange(keyframes)
    if keyframes < 2 or stride < 1 or start < 0 or chosen[-1] >= len(sequence.frames):
        raise InputError(
            f"--start {start} --stride {stride} --keyframes {keyframes}: expected at least 2 of the "
            f"{len(sequence.frames)} frames of {folder}"
        )
    return sequence[chosen]


def cloud_errors(
    points: Float[np.ndarray, "n 3"], truth: Float[np.ndarray, "m 3"], fit: Alignment, *, near: float = 0.05
) -> dict[str, float]:
    """How far the map's points are from the sensor's cloud, and how much of that cloud the map has.

    Both clouds are thinned to one point in 2 cm first, so that no place counts for more because it was seen more often.
    `map_completeness` is the share of the sensor's points that have a map point within `near` metres.
    """
    from scipy.spatial import cKDTree

    def thinned(cloud: np.ndarray) -> np.ndarray:
        _, first = np.unique(np.floor(cloud / 0.02).astype(np.int64), axis=0, return_index=True)
        return cloud[first]

    found, truth = thinned(fit.scale * points @ fit.rotation.T + fit.shift), thinned(truth)
    away = cKDTree(truth).query(found)[0]
    covered = cKDTree(found).query(truth)[0] <= near
    return {
        "map_accuracy_median_m": float(np.median(away)),
        "map_accuracy_mean_m": float(away.mean()),
        "map_completeness": float(covered.mean()),
    }


def evaluate_stream(sequence: Sequence, *, given_depth: bool, loops: bool, config: StreamConfig) -> dict:
    """Maps all frames one by one, without any pose, and compares path and map with the sensor's."""
    assert sequence.cameras is not None
    config = config if loops else dataclasses.replace(config, loops=0)
    sensor = None if sequence.depth is None else grid_depth(sequence.depth, config.rows)
    if given_depth and sensor is None:
        raise InputError("--given-depth: the sequence has no depth")
    began = time.perf_counter()
    mapped = map_stream(
        config, sequence.frames, sequence.cameras.intrinsics[0], depth=sensor if given_depth else None, say=print
    )
    seconds = time.perf_counter() - began
    ate, rotation, fit = pose_errors(mapped.cameras, sequence.cameras)
    result = {
        "ate_m": ate, "rotation_deg": rotation, "scale": fit.scale, "frames": len(sequence.frames),
        "keyframes": int(mapped.graph.count), "loops": len(mapped.loops), "closures": mapped.closures,
        "points": int(mapped.point_map.num_points), "seconds": seconds,
    }  # fmt: skip
    if sensor is None:
        return result
    held = np.asarray(mapped.graph.frames)
    held = held[held >= 0]
    depth = 1 / np.asarray(mapped.graph.variables.inverse_depth)[: len(held)]
    known = sensor[held] > 0
    ratio = depth[known] / sensor[held][known]
    result["depth_median_rel"] = float(np.median(np.abs(ratio / np.median(ratio) - 1)))
    cloud = np.asarray(sequence.cameras.unproject(jnp.asarray(sensor)))[sensor > 0]
    points = np.asarray(mapped.point_map.positions)[np.asarray(mapped.point_map.valid)]
    return result | cloud_errors(points, cloud, fit)
