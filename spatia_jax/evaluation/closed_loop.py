"""The closed loop with ground truth: go out, come back, and compare every frame with what is really there.

The paper (Tables 3 and 4) compares only the last frame with the first, since no data set shows what a generated view
should have been. The procedural world does: it is rendered along the same path. Four ways are compared:

    with_memory     the model as it is
    without_memory  the same weights, projection and references withheld (first row of the paper's Table 4)
    projection      the map of with_memory as each clip is shown it, holes filled with the mean colour of what is known
    photo           no network at all: the points of the given photo alone, filled likewise

Holes are the pixels in which the map had no point when their clip was made; unseen pixels are those in which the points
of the photo alone have none, so they include what was generated before and is seen again. All ways are scored on the
same pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from spatia_jax import splat
from spatia_jax.cameras import Cameras
from spatia_jax.config import Experiment
from spatia_jax.data.procedural import HELD_OUT, caption, render, sample_path, sample_scene
from spatia_jax.evaluation.metrics import psnr, ssim
from spatia_jax.model import Model, Params
from spatia_jax.sampling import compiled
from spatia_jax.sampling.driver import Driver, NoProgress
from spatia_jax.sampling.inputs import split_masks, split_path
from spatia_jax.splat import Projection
from spatia_jax.state import Clip, ClipRequest, World
from spatia_jax.text import NEGATIVE_PROMPT, Tokenizer
from spatia_jax.world import new_world

WAYS = ("with_memory", "without_memory", "projection", "photo")


@dataclass(frozen=True)
class Truth:
    """A held-out scene along a path that returns: t views.

    Attributes:
        frames: [t, h, w, 3] uint8; depth: [h, w] metres, of the first view; prompt: what the scene shows.
    """

    frames: np.ndarray
    depth: np.ndarray
    cameras: Cameras
    prompt: str


def true_sequence(config: Experiment, index: int, clips: int) -> Truth:
    """Scene `index` of the held-out ones, along a there-and-back path of whole clips."""
    seed, frames = HELD_OUT + index, config.clip.frames_of(clips)
    scene = sample_scene(seed)
    cameras = sample_path(seed, scene, frames, "there_and_back")
    seen = render(scene, cameras, jnp.arange(frames) / config.clip.fps, config.clip.height, config.clip.width)
    return Truth(np.asarray(seen.color), np.asarray(seen.depth[0]), cameras, caption(scene))


@dataclass(frozen=True)
class Walker:
    """Rollouts of one model along paths whose views are known."""

    model: Model
    params: Params
    tokenizer: Tokenizer

    def start(self, truth: Truth, seed: int, *, given_depth: bool) -> World:
        """A world that knows the first frame alone (and its true depth, if given)."""
        world, first = new_world(self.model, jax.random.key(seed)), truth.cameras[0]
        depth = truth.depth
        if not given_depth:
            depth = compiled.estimate_view_depth(self.model, self.params, world, truth.frames[0], first)
        still = np.zeros(truth.frames.shape[1:3], bool)
        return compiled.observe(self.model, world, truth.frames[0], depth, first, still)

    def photo(self, truth: Truth, world: World) -> Projection:
        """What the points of a started world show along the path."""
        config, points = self.model.config, world.point_map
        return splat.render(
            points.positions, points.colors, points.valid, truth.cameras,
            height=config.clip.height, width=config.clip.width, config=config.splat,
        )  # fmt: skip

    def walk(self, truth: Truth, world: World) -> list[Clip]:
        """The clips along the path."""
        clip, still = self.model.config.clip, np.zeros(truth.frames.shape[:3], bool)
        ids, mask = self.tokenizer.encode([truth.prompt, NEGATIVE_PROMPT], clip.text_length)
        context, negative = compiled.embed_text(self.model, self.params, ids, mask)
        requests = [
            ClipRequest(cameras, context, negative, moving)
            for cameras, moving in zip(
                split_path(truth.cameras, clip, opening=True),
                split_masks(still, truth.cameras, clip, opening=True),
                strict=True,
            )
        ]
        clips: list[Clip] = []
        Driver(self.model).run(
            self.params, world, requests, [truth.prompt] * len(requests), progress=NoProgress(),
            keep=lambda index, before, after, made, seconds: clips.append(jax.tree.map(np.asarray, made)),
        )  # fmt: skip
        return clips


def without_memory(config: Experiment) -> Experiment:
    """The same experiment with projection and references withheld."""
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, use_map=False, use_references=False))


def filled_projection(projections: list[Projection]) -> tuple[np.ndarray, np.ndarray]:
    """Projections [t, h, w, 3] uint8, each laid over the mean colour of its known pixels, and the holes [t, h, w]."""
    color = np.concatenate([projection.color for projection in projections])
    coverage = np.concatenate([projection.coverage for projection in projections])[..., None]
    mean = color.sum((1, 2), keepdims=True) / np.maximum(coverage.sum((1, 2), keepdims=True), 1e-6)
    filled = np.clip(color + (1 - coverage) * mean, 0, 1)
    holes = np.concatenate([projection.depth for projection in projections]) <= 0
    return np.round(filled * 255).astype(np.uint8), holes


def score(frames: np.ndarray, truth: np.ndarray, holes: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """PSNR of the returning frame, of all generated frames (the given first one is left out), and in parts of them."""
    return {
        "psnr_return": psnr(frames[-1], truth[-1]),
        "ssim_return": ssim(frames[-1], truth[-1]),
        "psnr_all": psnr(frames[1:], truth[1:]),
        "psnr_holes": psnr(frames[1:], truth[1:], holes[1:]),
        "psnr_unseen": psnr(frames[1:], truth[1:], unseen[1:]),
    }


def evaluate(
    config: Experiment,
    params: Params,
    tokenizer: Tokenizer,
    *,
    scenes: int,
    clips: int,
    seed: int,
    given_depth: bool,
    say: Callable[[str], None] = print,
) -> dict:
    """Scores of all ways, per scene and as means over scenes."""
    walkers = {
        "with_memory": Walker(Model(config), params, tokenizer),
        "without_memory": Walker(Model(without_memory(config)), params, tokenizer),
    }
    rows: list[dict] = []
    for index in range(scenes):
        truth = true_sequence(config, index, clips)
        worlds = {name: walker.start(truth, seed, given_depth=given_depth) for name, walker in walkers.items()}
        made = {name: walker.walk(truth, worlds[name]) for name, walker in walkers.items()}
        videos = {name: np.concatenate([clip.frames for clip in made[name]]) for name in made}
        videos["projection"], holes = filled_projection([clip.projection for clip in made["with_memory"]])
        photo = walkers["with_memory"].photo(truth, worlds["with_memory"])
        videos["photo"], unseen = filled_projection([jax.tree.map(np.asarray, photo)])
        scores = {way: score(videos[way], truth.frames, holes, unseen) for way in WAYS}
        rows.append({"scene": index, "prompt": truth.prompt, "holes": float(holes[1:].mean()), **scores})
        shown = "  ".join(f"{way} {scores[way]['psnr_return']:.2f}/{scores[way]['psnr_all']:.2f}" for way in WAYS)
        say(f"scene {index}: return/all dB  {shown}")
    means = {way: {name: float(np.nanmean([row[way][name] for row in rows])) for name in rows[0][way]} for way in WAYS}
    return {**means, "scenes": rows}


def table(result: dict) -> str:
    """The means as text."""
    columns = ("psnr_return", "ssim_return", "psnr_all", "psnr_holes", "psnr_unseen")
    lines = [f"{'':16}" + "".join(f"{name:>13}" for name in columns)]
    lines += [f"{way:16}" + "".join(f"{result[way][name]:13.3f}" for name in columns) for way in WAYS]
    return "\n".join(lines)
