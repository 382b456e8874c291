"""A rollout for people: clip by clip, with progress, saved after every clip, resumable to the bit.

The same functions as `world.rollout`, compiled in three pieces (prepare, one denoising step, finish) so that progress
can be shown between them. One compiled set serves the opening clip, and one all continuing clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, UInt8

from spatia_jax import diffusion
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_bytes, to_signed
from spatia_jax.sampling import compiled
from spatia_jax.sampling.executables import Executables
from spatia_jax.state import Clip, ClipRequest, World


class Progress(Protocol):
    """Told what happens, clip by clip (see `io.progress.RolloutProgress`)."""

    def start_clip(self, index: int, prompt: str) -> None: ...

    def stage(self, name: str) -> None: ...

    def step(self, completed: int) -> None: ...

    def finish_clip(self, num_points: int) -> None: ...


class NoProgress:
    """Shows nothing."""

    def start_clip(self, index: int, prompt: str) -> None: ...

    def stage(self, name: str) -> None: ...

    def step(self, completed: int) -> None: ...

    def finish_clip(self, num_points: int) -> None: ...


@dataclass
class Stopwatch:
    """Seconds by stage; a stage ends when its arrays are there."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Driver:
    """Runs the clips of one model, with its pieces from a folder, if one is given."""

    model: Model
    executables: Executables | None = None

    def run_clip(
        self, params: Params, world: World, request: ClipRequest, *, opening: bool, progress: Progress
    ) -> tuple[World, Clip, dict[str, float]]:
        """One clip. Returns the next world, the clip, and seconds by stage."""
        watch, kind = Stopwatch(), "opening" if opening else "continuing"
        painters = {name: params[name] for name in compiled.PAINTERS if name in params}
        progress.stage("project and retrieve")
        with watch("project and retrieve"):
            projection, conditions, references = self._run(
                f"before-{kind}", compiled.before_denoising, params, world, request, opening=opening
            )
            state = jax.block_until_ready(compiled.init_state(conditions))
        progress.stage("denoise")
        with watch("denoise"):
            for index, row in enumerate(diffusion.make_plan(self.model.config.sampler)):
                state = jax.block_until_ready(
                    self._run(f"step-{kind}", compiled.denoising_step, painters, conditions, state, row)
                )
                progress.step(index + 1)
        progress.stage("decode and map")
        with watch("decode and map"):
            latents = state.latents[:, conditions.num_references :]
            world, clip = self._run(
                f"after-{kind}", compiled.after_denoising, params, world, request, projection, latents, references,
                opening=opening,
            )  # fmt: skip
            jax.block_until_ready((world.point_map.positions, clip.frames))
        return world, clip, watch.seconds

    def _run(self, name: str, piece: Callable, params: Params, *given: Any, **static: Any) -> Any:
        if self.executables is None:
            return piece(self.model, params, *given, **static)
        return self.executables(name, piece, params, given, **static)

    def run(
        self,
        params: Params,
        world: World,
        requests: list[ClipRequest],
        prompts: list[str],
        *,
        first: int = 0,
        progress: Progress,
        keep: Callable[[int, World, World, Clip, dict[str, float]], None],
    ) -> World:
        """All clips that are not made yet; `keep` stores each one before the next begins.

        Args:
            requests: one for each clip, the first of them for the clip number `first` of the world.
            prompts: their texts, for the progress display.
            first: clip index of the world that the requests begin at; clips up to `world.clip_index` are skipped.
            keep: called with clip index, the world before and after, the clip, and its seconds by stage.
        """
        for index in range(int(world.clip_index), first + len(requests)):
            progress.start_clip(index - first, prompts[index - first])
            before = world
            world, clip, seconds = self.run_clip(
                params, world, requests[index - first], opening=index == 0, progress=progress
            )
            keep(index, before, world, clip, seconds)
            del before, clip  # the next clip needs the room
            progress.finish_clip(int(world.point_map.num_points))
        return world


class HasLatents(Protocol):
    @property
    def latents(self) -> np.ndarray: ...


def decode_jointly(
    model: Model, params: Params, clips: Sequence[HasLatents], history: UInt8[Array, "n h w 3"] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """All clips as one video: one causal decoding of their latents, one latent frame at a time.

    So the frames behind a seam see the latents before it, as the release has it, and not the decoded history.

    Args:
        history: the frames before the first clip, if that is a continuing one; they lead, and are cut off.
    """
    latents = [clip.latents for clip in clips]
    if history is not None:
        latents.insert(0, np.asarray(compiled.encode(model, params, to_signed(history)[None])[0]))
    frames, carry = [], None
    for latent in np.concatenate(latents):
        decoded, carry = compiled.decode_chunk(model, params, latent[None, None], carry)
        frames.append(np.asarray(to_bytes(decoded[0])))
    return np.concatenate(frames)[0 if history is None else len(history) :]
