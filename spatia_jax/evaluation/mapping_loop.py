"""The mapper inside the loop, with ground truth: how far wrong poses lead it astray, and what it finds out by itself.

A camera goes out and comes back through a held-out procedural scene. It really moves along the *actual* path; the
mapper is *told* another one, which turns away by `degrees` and moves off by `percent` of the way in every clip, always
in the same direction, so that the errors add up. What the actual path means depends on where the frames come from:

    seen       the frames are the scene itself, rendered at the actual poses with its moving objects: a camera that does
               not go where it was sent. This is the test of a mapper, since nothing but the frames shows the way.
    generated  the frames are painted by the model on the projection of its own map, drawn at the actual poses: a
               generator that does not obey. The pose that the projection was drawn with is the truth.

Three mappers are compared: `adjusted` has the bundle adjustment, `trusting` believes what it is told, and `exact` too,
but is told the truth. Pose errors are those of the last frame, which stands where the first one stood. PSNR compares
with the scene at the actual poses: of `seen` frames the projection of the map in the clip to come (that is what a
generator would be given), of `generated` ones the frames themselves.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spatia_jax import mapper
from spatia_jax.cameras import Cameras
from spatia_jax.cameras.drift import perturb
from spatia_jax.config import Experiment
from spatia_jax.data.procedural import HELD_OUT, Scene, caption, inside_moving, render, sample_path, sample_scene
from spatia_jax.errors import InputError
from spatia_jax.evaluation.closed_loop import Truth, Walker, filled_projection
from spatia_jax.evaluation.metrics import psnr
from spatia_jax.memory import PointMap
from spatia_jax.model import Model, Params
from spatia_jax.sampling import compiled
from spatia_jax.sampling.inputs import split_path
from spatia_jax.splat import Projection
from spatia_jax.state import ClipRequest, World
from spatia_jax.text import NEGATIVE_PROMPT, Tokenizer

MAPPERS = ("adjusted", "trusting", "exact")
FRAMES = ("seen", "generated")


@dataclass(frozen=True)
class Sequence:
    """A scene along the actual path: t views.

    Attributes:
        frames: [t, h, w, 3] uint8; depth: [t, h, w] metres; moving: [t, h, w] bool, what belongs to moving objects.
        actual, told: Cameras [t].
    """

    scene: Scene
    frames: np.ndarray
    depth: np.ndarray
    moving: np.ndarray
    actual: Cameras
    told: Cameras
    prompt: str

    def truth(self) -> Truth:
        """What the closed loop starts from."""
        return Truth(self.frames, self.depth[0], self.actual, self.prompt)


def make_sequence(
    config: Experiment, index: int, clips: int, degrees: float, percent: float, kind: str = "there_and_back"
) -> Sequence:
    """Scene `index` of the held-out ones, along a path of whole clips."""
    seed, count = HELD_OUT + index, config.clip.frames_of(clips)
    scene = sample_scene(seed)
    actual = sample_path(seed, scene, count, kind)
    seen = render(scene, actual, jnp.arange(count) / config.clip.fps, config.clip.height, config.clip.width)
    clip_of = np.repeat(np.arange(clips), [config.clip.opening_frames] + [config.clip.new_frames] * (clips - 1))
    told = perturb(actual, clip_of, degrees, percent, seed)
    return Sequence(
        scene, np.asarray(seen.color), np.asarray(seen.depth), np.asarray(seen.moving), actual, told, caption(scene)
    )


def pose_errors(found: Cameras, actual: Cameras) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Distances of the centres in metres, and angles between the orientations in degrees."""
    turn = (found.as_se3().rotation() @ actual.as_se3().rotation().inverse()).log()
    apart = np.linalg.norm(np.asarray(found.centers - actual.centers), axis=-1)
    return apart, np.degrees(np.linalg.norm(np.asarray(turn), axis=-1))


@dataclass(frozen=True)
class Walk:
    """What one mapper made of one sequence.

    Attributes:
        path: Cameras [t] that it found.
        keyframes: [k] numbers of the frames that it mapped.
        moving: [k, h, w] bool, what it took for moving in them.
        pictures: [t, h, w, 3] uint8, filled projections (of seen frames) or generated frames.
        point_map: at the end.
        seconds: of the memory update of each clip.
    """

    path: Cameras
    keyframes: np.ndarray
    moving: Bool[np.ndarray, "k h w"]
    pictures: np.ndarray
    point_map: PointMap
    seconds: list[float]


def walk(walker: Walker, sequence: Sequence, told: Cameras, frames: str, *, seed: int, given_depth: bool) -> Walk:
    """Clip after clip: draws the projection, takes the seen frames or paints new ones, and maps them."""
    model, clip = walker.model, walker.model.config.clip
    world = walker.start(sequence.truth(), seed, given_depth=given_depth)
    world = dataclasses.replace(world, key=jax.random.key(seed))
    ids, mask = walker.tokenizer.encode([sequence.prompt, NEGATIVE_PROMPT], clip.text_length)
    context, negative = compiled.embed_text(model, walker.params, ids, mask)
    made: list[tuple] = []
    first = 0
    for cameras, wrong in zip(*(split_path(path, clip, opening=True) for path in (sequence.actual, told)), strict=True):
        last, opening = first + len(cameras), first == 0
        still = jnp.zeros((len(cameras), clip.height, clip.width), bool)
        request = ClipRequest(cameras, context, negative, still)
        # The projection is drawn where the camera really is, and was.
        there = sequence.actual[max(first - clip.history_frames, 0) : first]
        drawn = world if opening else dataclasses.replace(world, history_cameras=there)
        projection, new, references = paint(walker, drawn, request, opening=opening, seen=frames == "seen")
        shown = filled_projection([projection])[0] if new is None else np.asarray(new)
        new = jnp.asarray(sequence.frames[first:last]) if new is None else new
        began = time.perf_counter()
        world, mapped, path = jax.block_until_ready(
            compiled.map_and_remember(
                model, walker.params, world, dataclasses.replace(request, cameras=wrong), new, references,
                opening=opening,
            )
        )  # fmt: skip
        seconds = time.perf_counter() - began
        keyframes = first + np.array(mapper.keyframe_numbers(len(cameras), model.config.memory.map_stride))
        made.append((path, keyframes, np.asarray(mapped.moving), shown, seconds))
        first = last
    paths, *pictures, times = zip(*made, strict=True)
    keyframes, moving, shown = map(np.concatenate, pictures)
    return Walk(Cameras.concatenate(paths), keyframes, moving, shown, world.point_map, list(times))


def paint(
    walker: Walker, world: World, request: ClipRequest, *, opening: bool, seen: bool
) -> tuple[Projection, Array | None, Array]:
    """The projection of a clip's new frames, what the model paints on it (None: nothing), and its references."""
    if seen:
        projection, references = compiled.look(walker.model, world, request.cameras, opening=opening)
        return jax.tree.map(np.asarray, projection), None, references
    projection, conditions, references = compiled.before_denoising(
        walker.model, walker.params, world, request, opening=opening
    )
    count = len(request.cameras)
    frames = compiled.paint(walker.model, walker.params, conditions, num_new=count)
    return jax.tree.map(lambda leaf: np.asarray(leaf[-count:]), projection), frames, references


def score(config: Experiment, sequence: Sequence, result: Walk) -> dict[str, float]:
    """Numbers of one walk; `intersection` and `union` are pixels of the motion masks."""
    metres, degrees = pose_errors(result.path, sequence.actual)
    truth = sequence.moving[result.keyframes]
    points = result.point_map
    valid = np.asarray(points.valid)
    brought_by = np.maximum(np.asarray(points.keyframes)[valid], 0)  # the photo is frame 0
    inside = inside_moving(sequence.scene, np.asarray(points.positions)[valid], brought_by / config.clip.fps)
    return {
        "end_m": float(metres[-1]),
        "end_degrees": float(degrees[-1]),
        "mean_m": float(metres.mean()),
        "mean_degrees": float(degrees.mean()),
        "psnr": psnr(result.pictures[1:], sequence.frames[1:]),
        "psnr_return": psnr(result.pictures[-1], sequence.frames[-1]),
        "intersection": float((truth & result.moving).sum()),
        "union": float((truth | result.moving).sum()),
        "truly_moving": float(truth.mean()),
        "points": int(valid.sum()),
        "points_in_moving": float(inside.mean()),
        "seconds": float(np.median(result.seconds[1:])),
    }


def evaluate(
    config: Experiment,
    params: Params,
    tokenizer: Tokenizer,
    *,
    scenes: Iterable[int],
    clips: int,
    degrees: float,
    percent: float,
    frames: str,
    given_depth: bool,
    seed: int,
    mappers: tuple[str, ...] = MAPPERS,
    say: Callable[[str], None] = print,
) -> dict:
    """Scores of the mappers, per scene and over all scenes."""
    if frames not in FRAMES or not set(mappers) <= set(MAPPERS):
        raise InputError(f"frames is {frames!r}, one of {', '.join(FRAMES)}; mappers are of {', '.join(MAPPERS)}")
    adjusting = config.tracked()
    trusting = dataclasses.replace(config, mapper=dataclasses.replace(config.mapper, tracking=None))
    rows: list[dict] = []
    for index in scenes:
        sequence = make_sequence(config, index, clips, degrees, percent)
        row: dict = {"scene": index, "prompt": sequence.prompt}
        for name in mappers:
            walker = Walker(Model(adjusting if name == "adjusted" else trusting), params, tokenizer)
            told = sequence.actual if name == "exact" else sequence.told
            result = walk(walker, sequence, told, frames, seed=seed, given_depth=given_depth)
            row[name] = score(config, sequence, result) | {"clip_seconds": result.seconds}
            shown = {key: round(value, 4) for key, value in row[name].items() if not isinstance(value, list)}
            say(f"scene {index} {name:9} {shown}")
        rows.append(row)
    settings = {"clips": clips, "degrees": degrees, "percent": percent, "frames": frames, "given_depth": given_depth}
    means = {name: pooled([row[name] for row in rows]) for name in mappers}
    return {"settings": settings, **means, "scenes": rows}


def pooled(scores: list[dict]) -> dict:
    """Means over scenes; the motion masks' overlap over all pixels of all scenes; median seconds of every clip."""
    means: dict = {name: float(np.mean([row[name] for row in scores])) for name in scores[0] if name != "clip_seconds"}
    union = means.pop("union")
    means["motion_iou"] = means.pop("intersection") / union if union else float("nan")
    return means | {"clip_seconds": np.median([row["clip_seconds"] for row in scores], axis=0).tolist()}


def table(result: dict) -> str:
    """The means as text."""
    columns = ("end_m", "end_degrees", "mean_m", "mean_degrees", "psnr", "psnr_return", "motion_iou",
               "points_in_moving", "seconds")  # fmt: skip
    names = [name for name in MAPPERS if name in result]
    lines = [f"{'':10}" + "".join(f"{name:>17}" for name in columns)]
    lines += [f"{name:10}" + "".join(f"{result[name][column]:17.4f}" for column in columns) for name in names]
    return "\n".join(lines)


def cost_table(result: dict) -> str:
    """Seconds of the memory update of some clips, beside those of building the map anew from all clips so far.

    The latter is the sum of the updates of these clips: what the same mapper would need for it.
    """
    lines = []
    for name in (name for name in MAPPERS if name in result):
        seconds = result[name]["clip_seconds"]
        for clip in sorted({min(3, len(seconds)), len(seconds)}):
            # The first two are compiled when they run: an opening and a continuing clip.
            usual = float(np.median(seconds[2:])) if len(seconds) > 2 else seconds[-1]
            lines.append(f"{name:10} clip {clip:3}: update {seconds[clip - 1]:7.2f} s, anew {usual * clip:8.2f} s")
    return "\n".join(lines)
