"""What the inpainter is trained on: true views of scenes, and how a map of other views of the same scene shows them.

A folder of shards like that of `training.examples`. Half of the maps are of one view and the depth network's idea of
its depth, as at the start of a video; the others are of up to three views with true depth. Everything is kept at the
inpainter's own scale.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Source
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from spatia_jax import memory, splat
from spatia_jax.data.conditioning import Sequence
from spatia_jax.io.atomic import atomic_write
from spatia_jax.model import Model, Params
from spatia_jax.pixels import to_signed, to_unit
from spatia_jax.pyramid import shrink
from spatia_jax.training.examples import Rows, as_sequence, load_examples

_MAPS, _SOURCES, _VIEWS = 4, 3, 6  # of a scene: maps, views that can make one, views that are shown of each


def make_viewer(model: Model) -> Callable:
    """`view(params, sequence, sources, estimated, targets) -> {"color", "coverage", "truth"}`, bytes; jitted."""
    config = model.config
    assert config.inpainter is not None
    scale = config.inpainter.scale

    def small(x: Array) -> Array:
        return shrink(x, jnp.ones(x.shape[:-1]), scale)[0]

    def view(
        params: Params, sequence: Sequence, sources: Int[Array, " s"], estimated: Bool[Array, ""],
        targets: Int[Array, " v"],
    ) -> dict[str, Array]:  # fmt: skip
        sequence = jax.tree.map(jnp.asarray, sequence)
        frames = sequence.frames[sources]
        guess = model.estimate_depth(params, to_signed(frames[:1]))
        depth = sequence.depth[sources].at[0].set(jnp.where(estimated, guess[0], sequence.depth[sources[0]]))
        usable = ~sequence.moving[sources] & ~(estimated & (jnp.arange(len(sources)) > 0))[:, None, None]
        positions, colors, _, valid = jax.vmap(memory.from_depth)(
            to_unit(frames), depth, sequence.cameras[sources], usable
        )
        shown = splat.render(
            positions.reshape(-1, 3), colors.reshape(-1, 3), valid.reshape(-1), sequence.cameras[targets],
            height=config.clip.height, width=config.clip.width, config=config.splat,
        )  # fmt: skip
        pictures = {
            "color": small(shown.color),
            "coverage": small(shown.coverage[..., None])[..., 0],
            "truth": small(to_unit(sequence.frames[targets])),
        }
        return {name: jnp.round(255 * picture).astype(jnp.uint8) for name, picture in pictures.items()}

    return jax.jit(view)


def build_views(
    model: Model,
    params: Params,
    source: Source[dict],
    directory: Path,
    *,
    shard_size: int = 64,
    say: Callable[[str], None] = print,
) -> None:
    """Writes views of every sequence of `source` into shards under `directory`; `params` has the depth network."""
    view = make_viewer(model)
    directory.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, len(source), shard_size)):
        path, end = directory / f"views-{shard:05d}.npz", min(first + shard_size, len(source))
        if path.exists():
            continue
        rows = []
        for index in range(first, end):
            sequence, rng = as_sequence(source[index]), np.random.default_rng([index, 13])
            for turn in range(_MAPS):
                sources = rng.integers(len(sequence.frames), size=_SOURCES)
                targets = rng.integers(len(sequence.frames), size=_VIEWS)
                rows.append(jax.tree.map(np.asarray, view(params, sequence, sources, turn % 2 == 0, targets)))
        stacked: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        with atomic_write(path) as temporary:
            np.savez(temporary, **stacked)
        say(f"views: {end}/{len(source)} scenes")


def view_batches(directory: Path, *, batch_size: int, seed: int) -> grain.MapDataset:
    """Endless batches of views, some mirrored, all tinted.

    Returns:
        `{"color", "truth": [b, p, q, 3], "coverage": [b, p, q]}`, uint8.
    """

    def vary(row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        flip, gain = slice(None, None, -1 if rng.integers(2) else 1), rng.uniform(0.85, 1.15, 3)
        tinted = {
            name: np.clip(np.rint(row[name][:, flip] * gain), 0, 255).astype(np.uint8) for name in ("color", "truth")
        }
        return {**tinted, "coverage": np.ascontiguousarray(row["coverage"][:, flip])}

    rows = grain.MapDataset.source(Rows(load_examples(directory, "views")))
    return rows.seed(seed).shuffle().repeat().random_map(vary).batch(batch_size, drop_remainder=True)
