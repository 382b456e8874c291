"""A small language for camera paths: "dolly in 1.0; orbit right 45 and tilt up 5; there and back".

The words are those of camera crews. A path is relative to the first camera, whose up is the up of the whole path, so
that a pan after a tilt keeps the horizon level. Moves made at the same time compose as on a real rig, whatever their
order in the text: a crane that orbits carries a dolly, the dolly carries a head that pans, then tilts, then rolls.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from spatia_jax.cameras.camera import Cameras
from spatia_jax.cameras.paths import ease
from spatia_jax.errors import InputError

PATH_HELP = """\
A camera path is a few moves in words, relative to the first camera:

  "dolly in 1.0; orbit right 45 and tilt up 5; there and back"

  pan left|right     turn about the vertical          degrees (30)
  tilt up|down       look up or down                  degrees (15)
  roll left|right    lean to a side                   degrees (15)
  dolly in|out       move along the view              metres  (a quarter of the scene's depth)
  truck left|right   move sideways                    metres  (a fifth of it)
  pedestal up|down   move up or down                  metres  (a tenth of it)
  orbit left|right|up|down   circle what is ahead     degrees (45)
  zoom in|out        change the focal length          factor  (1.5)
  hold               stay                             seconds (1s)
  there and back     retrace the whole path so far

In brackets: the amount if none is given. Metres are scene units where the scale is unknown; "25%" is a share of the
scene's depth. Also understood: forward, backward, move left|right|up|down, turn left|right, look up|down, push in,
pull out, spin (a full turn).

  ;  or  then        one after another
  ,  or  and         at the same time
  over 2s, for 2s    a longer share of the frames; every part counts as 1s unless it says otherwise

The frames of the clip are shared between the parts in proportion, and each part starts and stops gently.
"""


@dataclass(frozen=True)
class _Move:
    """What a phrase asks for: a quantity, its direction, and how much of it where no amount is given."""

    quantity: str
    sign: int
    default: float


@dataclass(frozen=True)
class _Segment:
    """A part of a path: how much of each quantity (None: retrace all before), and its share of time."""

    amounts: dict[str, float] | None
    duration: float


@dataclass(frozen=True)
class _State:
    """Where a camera is, in the coordinates of the first: rotation [3, 3], centre [3], and its zoom."""

    rotation: np.ndarray
    center: np.ndarray
    zoom: float


# Unit of each quantity, and the default amounts: degrees, shares of the scene's depth, a factor, seconds.
_UNITS = dict.fromkeys(("pan", "tilt", "roll", "orbit", "orbit_up"), "degrees")
_UNITS |= dict.fromkeys(("dolly", "truck", "pedestal"), "metres") | {"zoom": "factor", "hold": "seconds"}
_MOVES = {
    "pan left": _Move("pan", -1, 30),
    "pan right": _Move("pan", 1, 30),
    "tilt up": _Move("tilt", 1, 15),
    "tilt down": _Move("tilt", -1, 15),
    "roll left": _Move("roll", -1, 15),
    "roll right": _Move("roll", 1, 15),
    "dolly in": _Move("dolly", 1, 0.25),
    "dolly out": _Move("dolly", -1, 0.25),
    "truck left": _Move("truck", -1, 0.2),
    "truck right": _Move("truck", 1, 0.2),
    "pedestal up": _Move("pedestal", 1, 0.1),
    "pedestal down": _Move("pedestal", -1, 0.1),
    "orbit left": _Move("orbit", -1, 45),
    "orbit right": _Move("orbit", 1, 45),
    "orbit up": _Move("orbit_up", 1, 45),
    "orbit down": _Move("orbit_up", -1, 45),
    "zoom in": _Move("zoom", 1, 1.5),
    "zoom out": _Move("zoom", -1, 1.5),
    "hold": _Move("hold", 1, 1),
}
_ALIASES = {
    "forward": "dolly in", "move forward": "dolly in", "push in": "dolly in", "dolly forward": "dolly in",
    "backward": "dolly out", "backwards": "dolly out", "move backward": "dolly out", "pull out": "dolly out",
    "pull back": "dolly out", "dolly backward": "dolly out", "move left": "truck left", "left": "truck left",
    "move right": "truck right", "right": "truck right", "move up": "pedestal up", "up": "pedestal up",
    "move down": "pedestal down", "down": "pedestal down", "turn left": "pan left", "turn right": "pan right",
    "look left": "pan left", "look right": "pan right", "look up": "tilt up", "look down": "tilt down",
    "orbit": "orbit right", "wait": "hold", "stay": "hold",
}  # fmt: skip
_PHRASES = _MOVES | {alias: _MOVES[name] for alias, name in _ALIASES.items()} | {"spin": _Move("pan", 1, 360)}
_UNIT_WORDS = {
    "degrees": ("°", "deg", "degree", "degrees"),
    "metres": ("m", "metre", "metres", "meter", "meters", "unit", "units", "%"),
    "factor": ("x",),
    "seconds": ("s", "sec", "second", "seconds"),
}
_RETRACE = re.compile(r"\b(there and back|and back|and back again)$")
_DURATION = re.compile(r"\s(?:over|for)\s+(\d+(?:\.\d+)?)\s*(?:s|sec|seconds?)$")
_AMOUNT = re.compile(r"^(?P<words>[^\d+\-.%°]*?)\s*(?:(?P<amount>[-+]?\d*\.?\d+)\s*(?P<unit>[a-z°%]*))?$")
_NEAREST_PIVOT = 0.25  # of the scene's depth: what a camera that has come too close, or turned away, orbits


def parse_path(text: str, start: Cameras, num_frames: int, scene_depth: float) -> Cameras:
    """The path that `text` asks for (see `PATH_HELP`), beginning at `start`.

    Args:
        start: the first camera, one view (of shape () or (1,)).
        scene_depth: distance of what the first camera sees (its median depth): the pivot of orbits, and the unit of
            default distances.

    Returns: [num_frames] views; the first is `start`.

    Raises: InputError for words that are not understood, amounts in the wrong unit, no frames, or no depth.
    """
    if start.num_views != 1 or len(start.shape) > 1:
        raise InputError(f"a path starts at one camera, got cameras of shape {start.shape}")
    if num_frames < 1:
        raise InputError(f"a path of {num_frames} frames, expected at least 1")
    if not (math.isfinite(scene_depth) and scene_depth > 0):
        raise InputError(f"scene depth {scene_depth}, expected a distance above 0")
    segments = _parse(text, scene_depth)
    states = [_State(np.eye(3), np.zeros(3), 1.0)]
    for segment in segments:
        amounts = segment.amounts
        states.append(states[0] if amounts is None else _state(states[-1], amounts, 1.0, scene_depth))
    ends = np.cumsum([segment.duration for segment in segments])
    frames = [_at(segments, states, ends, t, scene_depth) for t in np.linspace(0.0, ends[-1], num_frames)]
    return _cameras(start, frames)


def _at(segments: list[_Segment], states: list[_State], ends: np.ndarray, time: float, depth: float) -> _State:
    """The state at a time from the path's beginning; `states[i]` is the one at the beginning of segment i."""
    i = min(int(np.searchsorted(ends, time)), len(segments) - 1)
    left = ends[i] - time
    amounts = segments[i].amounts
    if amounts is None:  # a retrace lasts as long as all before it
        return _at(segments, states, ends, left, depth)
    return _state(states[i], amounts, 1 - left / segments[i].duration, depth)


def _state(before: _State, amounts: dict[str, float], progress: float, depth: float) -> _State:
    """The state after a share of a segment: orbit, then dolly, truck and pedestal, then pan, tilt and roll."""
    amount = {name: amounts.get(name, 0.0) * ease(progress) for name in _UNITS}
    angle = {name: math.radians(amount[name]) for name, unit in _UNITS.items() if unit == "degrees"}
    right, forward = before.rotation[:, 0], before.rotation[:, 2]
    up = np.array([0.0, -1.0, 0.0])

    pivot = before.center + forward * max(forward @ (np.array([0, 0, depth]) - before.center), _NEAREST_PIVOT * depth)
    orbit = _turn(up, angle["orbit"]) @ _turn(right, -angle["orbit_up"])
    center = before.center + forward * amount["dolly"] + right * amount["truck"] + up * amount["pedestal"]
    head = _turn([1, 0, 0], angle["tilt"]) @ _turn([0, 0, 1], angle["roll"])
    rotation = _turn(up, -angle["pan"]) @ before.rotation @ head
    return _State(orbit @ rotation, pivot + orbit @ (center - pivot), before.zoom * math.exp(amount["zoom"]))


def _turn(axis: np.ndarray | list[int], angle: float) -> np.ndarray:
    """Rotation [3, 3] about a unit axis (Rodrigues)."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)


def _cameras(start: Cameras, states: list[_State]) -> Cameras:
    """States relative to the first camera, as cameras in the world."""
    pose = np.asarray(start.cam_from_world, np.float64).reshape(3, 4)
    rotation = np.stack([state.rotation.T for state in states])
    center = np.stack([state.center for state in states])
    translation = np.einsum("tij,tj->ti", rotation, pose[:, 3] - center)
    cam_from_world = np.concatenate([rotation @ pose[:, :3], translation[..., None]], axis=-1)
    zoom = np.array([[state.zoom, state.zoom, 1, 1] for state in states])
    intrinsics = np.asarray(start.intrinsics).reshape(4) * zoom
    return Cameras(jnp.asarray(cam_from_world, jnp.float32), jnp.asarray(intrinsics, jnp.float32))


def _parse(text: str, depth: float) -> list[_Segment]:
    segments: list[_Segment] = []
    for part in re.split(r";|\bthen\b|\n", text.lower()):
        part = " ".join(part.split()).strip(" .,")
        if not part:
            continue
        part, retraces = _RETRACE.subn("", part)
        if part := part.strip(" ,"):
            segments.append(_segment(part, depth))
        if retraces and not segments:
            raise InputError(f"camera path {text!r}: nothing to retrace before 'there and back', expected moves first")
        if retraces:
            segments.append(_Segment(None, sum(segment.duration for segment in segments)))
    if not segments:
        raise InputError(f"camera path {text!r}: no moves, expected for instance 'dolly in 1.0; orbit right 45'")
    return segments


def _segment(text: str, depth: float) -> _Segment:
    duration = _DURATION.search(text)
    amounts: dict[str, float] = {}
    for move in re.split(r",|&|\band\b", text[: duration.start()] if duration else text):
        quantity, amount = _amount(move.strip(), depth)
        amounts[quantity] = amounts.get(quantity, 0.0) + amount
    seconds = float(duration[1]) if duration else amounts.get("hold", 1.0)
    if seconds <= 0:
        raise InputError(f"camera path: {text!r} takes {seconds:g} s, expected a duration above 0")
    return _Segment(amounts, seconds)


def _amount(text: str, depth: float) -> tuple[str, float]:
    """A quantity and its signed amount: degrees, scene units, log of the zoom, or seconds."""
    match = _AMOUNT.match(text)
    words = match["words"].removesuffix(" by") if match else text
    if match is None or words not in _PHRASES:
        # A move that begins with the same word is meant before one that merely looks alike.
        kin = [phrase for phrase in _PHRASES if phrase.split()[0] == words.split(" ")[0]]
        close = kin or difflib.get_close_matches(words, _PHRASES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"camera path: {text!r} is not a move; {hint}Known: {', '.join(_PHRASES)}, there and back")
    move = _PHRASES[words]
    unit, given = _UNITS[move.quantity], match["unit"]
    if given and given not in _UNIT_WORDS[unit]:
        raise InputError(f"camera path: {text!r} is in {given!r}, expected {unit}")
    scale = depth if unit == "metres" and match["amount"] is None else 0.01 * depth if given == "%" else 1.0
    amount = scale * (move.default if match["amount"] is None else float(match["amount"]))
    if amount <= (0 if unit != "factor" else 1):
        least = "a factor above 1" if unit == "factor" else "an amount above 0"
        raise InputError(f"camera path: {text!r}, expected {least}; the direction is said in words")
    return move.quantity, move.sign * (math.log(amount) if unit == "factor" else amount)
