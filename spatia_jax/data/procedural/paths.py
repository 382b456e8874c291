"""Smooth camera paths through procedural scenes that touch nothing.

A path is drawn by rejection: candidates of the asked kind start at random free places; of the first few that keep their
distance from every surface (and from wherever moving objects may come), the one that sees most is taken. When the place
is too narrow for the motion, the motion shrinks. Host code (NumPy), like the sampling of scenes.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from spatia_jax.cameras import Cameras
from spatia_jax.data.procedural.scene import Scene, clearance
from spatia_jax.errors import InputError

FRAMES_PER_SECOND = 12.0
MIN_CLEARANCE = 0.35
ASPECT = 224 / 128
KINDS = ("wander", "there_and_back", "pan", "orbit", "dolly")
_CANDIDATES = 200
_CHOICES = 5


def _wave(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """A smooth random function of time, about -1..1, that starts at 0."""
    rate, phase = rng.uniform(0.35, 0.8), rng.uniform(0, 2 * np.pi)
    return np.sin(2 * np.pi * rate * seconds / 4 + phase) - np.sin(phase)


def _motion(rng, kind: str, seconds: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacement aside and ahead of the first heading (metres), and yaw to the right (radians), over time."""
    turn = rng.choice([-1.0, 1.0])
    if kind == "pan":
        yaw = turn * scale * np.radians(rng.uniform(16, 34)) * seconds
        return 0.04 * _wave(rng, seconds), 0.04 * _wave(rng, seconds), yaw
    if kind == "dolly":
        gone = rng.choice([-1.0, 1.0, 1.0]) * scale * rng.uniform(0.3, 0.6) * seconds
        heading = rng.uniform(-0.5, 0.5)
        return gone * np.sin(heading), gone * np.cos(heading), 0.12 * _wave(rng, seconds)
    if kind == "orbit":
        radius = rng.uniform(1.2, 2.6)
        angle = turn * scale * np.radians(rng.uniform(12, 24)) * seconds
        return -radius * np.sin(angle), radius * (1 - np.cos(angle)), angle
    yaw = scale * (turn * np.radians(rng.uniform(6, 22)) * seconds + rng.uniform(0.1, 0.45) * _wave(rng, seconds))
    course = yaw + rng.uniform(-0.3, 0.3)
    step = scale * rng.uniform(0.25, 0.6) * np.diff(seconds, prepend=seconds[:1])
    return np.cumsum(np.sin(course) * step), np.cumsum(np.cos(course) * step), yaw


def _poses(position: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """World-to-camera [k, 3, 4] of level-headed cameras (no roll); positive pitch looks down."""
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    turn = np.stack([np.cos(yaw), zero, -np.sin(yaw), zero, one, zero, np.sin(yaw), zero, np.cos(yaw)], -1)
    nod = np.stack([one, zero, zero, zero, np.cos(pitch), -np.sin(pitch), zero, np.sin(pitch), np.cos(pitch)], -1)
    rotation = nod.reshape(-1, 3, 3) @ turn.reshape(-1, 3, 3)
    return np.concatenate([rotation, -rotation @ position[..., None]], -1)


def _free_places(rng, scene: Scene) -> np.ndarray:
    """Positions [k, 3] at eye height with room around them."""
    walls = np.asarray(scene.half)[0] if float(scene.half[0, 0]) < 10 else np.asarray(scene.half)[1]
    spots = rng.uniform(-1, 1, (400, 3)) * walls
    spots[:, 1] = -rng.uniform(1.3, 1.6, 400)
    free = clearance(scene, spots)
    good = spots[free > MIN_CLEARANCE + 0.1]
    return good if len(good) else spots[[free.argmax()]]


def _candidate(rng, motion: str, seconds: np.ndarray, places: np.ndarray, scale: float):
    """Positions [t, 3] and yaws [t] of one try, from a random place in a random direction."""
    start, heading = places[rng.integers(len(places))], rng.uniform(-np.pi, np.pi)
    clock = np.arange(int(seconds.max() * 24) + 3) / 24.0
    aside, ahead, yaw = (np.interp(seconds, clock, part) for part in _motion(rng, motion, clock, scale))
    east = np.cos(heading) * aside + np.sin(heading) * ahead
    north = np.cos(heading) * ahead - np.sin(heading) * aside
    return start + np.stack([east, 0.05 * _wave(rng, seconds), north], -1), yaw + heading


def _interest(scene: Scene, position: np.ndarray, yaw: np.ndarray) -> float:
    """How much there is to see: props and, twice as much, movers before the camera; less when a surface is near."""
    inside = np.asarray(scene.instance) > 0
    offset = np.asarray(scene.centre)[inside][None] - position[::4, None]
    sight = np.stack([np.sin(yaw), np.zeros_like(yaw), np.cos(yaw)], -1)
    towards = np.einsum("tkc,tc->tk", offset, sight[::4]) / np.maximum(np.linalg.norm(offset, axis=-1), 0.1)
    worth = np.where(np.asarray(scene.moves)[inside], 2.0, 0.5)
    open_view = np.mean([clearance(scene, position[::4] + d * sight[::4]) > 0.0 for d in (0.8, 1.4, 2.0)])
    return float(((towards > 0.87) * worth).sum(-1).clip(max=4.0).mean() + 4.0 * open_view)


def sample_path(seed: int, scene: Scene, num_frames: int, kind: str) -> Cameras:
    """A smooth path at 12 frames a second that stays at least `MIN_CLEARANCE` metres from every surface.

    Arguments:
      seed: the same seed, scene, length and kind always give the same path.
      scene: the place; also keeps clear of everywhere that its moving objects go.
      num_frames: length of the path.
      kind: "wander" (walks and turns), "there_and_back" (walks out and comes back: the last pose is exactly the first,
        and frame num_frames - 1 - i stands exactly where frame i stood), "pan", "orbit" or "dolly".

    Returns:
      Cameras [num_frames], with a horizontal field of view of 55 to 75 degrees and square pixels at 128 x 224.

    Raises:
      InputError: the kind is unknown, or the path has no frames.
    """
    if kind not in KINDS:
        raise InputError(f"path kind is {kind!r}; it can be one of {', '.join(KINDS)}")
    if num_frames < 1:
        raise InputError(f"num_frames is {num_frames}; a path needs at least 1 frame")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    seconds = np.arange(num_frames) / FRAMES_PER_SECOND
    if kind == "there_and_back":
        # Starts and turns around gently: the speed is zero at both ends of the way out.
        half_way = max((num_frames - 1) / 2, 1)
        ticks = np.minimum(np.arange(num_frames), np.arange(num_frames)[::-1])
        seconds = 1.25 * half_way / FRAMES_PER_SECOND * (1 - np.cos(np.pi * ticks / half_way)) / 2
    places = _free_places(rng, scene)
    motion = str(rng.choice(["wander", "wander", "orbit"])) if kind == "there_and_back" else kind
    best: tuple[float, Any] = (-np.inf, None)
    found = 0
    for attempt in range(_CANDIDATES):
        position, yaw = _candidate(rng, motion, seconds, places, 1.0 - attempt / _CANDIDATES)
        if clearance(scene, position).min() > MIN_CLEARANCE:
            best = max(best, (_interest(scene, position, yaw), (position, yaw)), key=lambda scored: scored[0])
            found += 1
        if found == _CHOICES:
            break
    else:
        if not found:
            # Nowhere to go: look around from the freest place.
            start = places[clearance(scene, places).argmax()]
            best = 0.0, (np.broadcast_to(start, (num_frames, 3)), 0.3 * seconds)
    position, yaw = best[1]
    pitch = rng.uniform(-0.03, 0.16) + 0.06 * _wave(rng, seconds)
    width = 1 / (2 * np.tan(np.radians(rng.uniform(55, 75)) / 2))
    intrinsics = np.broadcast_to([width, width * ASPECT, 0.5, 0.5], (num_frames, 4))
    return Cameras(jnp.asarray(_poses(position, yaw, pitch), jnp.float32), jnp.asarray(intrinsics, jnp.float32))
