"""Checkpoints of a run: Orbax, written in the background, whole or not there, on any number of hosts.

One checkpoint is one folder: parameters, average, optimizer state and step (`state`), and what was asked for
(`config`). The step is the position in the data too. What is frozen is not in it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from spatia_jax.errors import InputError
from spatia_jax.training.options import FitConfig
from spatia_jax.training.state import Params, TrainState

HELD_OUT = "held_out_loss"
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one folder; a context that waits for the last write."""

    def __init__(self, directory: Path, config: FitConfig, say: Callable[[str], None]):
        self.directory, self.config, self.say = directory.absolute(), config, say
        self._say_what_is_unfinished()
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics[HELD_OUT], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep_last), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.manager.close()

    @property
    def latest(self) -> int | None:
        """The last whole checkpoint's step."""
        return self.manager.latest_step()

    def save(self, state: TrainState, step: int, held_out: float | None) -> None:
        """Starts to write the state after `step` steps; returns when the arrays are copied to the host."""
        kept = dataclasses.replace(state, frozen={})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(kept),  # type: ignore[call-arg]
            config=ocp.args.JsonSave(_plain(self.config)),  # type: ignore[call-arg]
        )
        self.manager.save(step, args=args, metrics=None if held_out is None else {HELD_OUT: held_out}, force=True)

    def wait(self) -> None:
        """Until everything is on disk."""
        self.manager.wait_until_finished()

    def restore(self, step: int, start: TrainState, shardings: TrainState) -> TrainState:
        """The state of a checkpoint, on whatever mesh `shardings` are of; `start` gives shapes and what is frozen.

        Raises:
            InputError: it is of other networks, or damaged.
        """
        target, where = (dataclasses.replace(tree, frozen={}) for tree in (start, shardings))
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target, where
        )
        self._check(step, abstract)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            config=ocp.args.JsonRestore(),  # type: ignore[call-arg]
        )
        found = self.manager.restore(step, args=args)
        self._say_what_differs(found["config"], step)
        return dataclasses.replace(found["state"], frozen=start.frozen)

    def _check(self, step: int, wanted: TrainState) -> None:
        """Raises InputError when a checkpoint's arrays are not the ones that are trained; reads no data."""
        metadata = self.manager.item_metadata(step)["state"]
        if metadata is None:
            raise InputError(f"{self.directory / str(step)} is not whole: it has no metadata; remove it")
        found, asked = ({name: leaf.shape for name, leaf in _flat(tree)} for tree in (metadata, wanted))
        wrong = [name for name in {**asked, **found} if asked.get(name) != found.get(name)]
        if wrong:
            name = wrong[0]
            raise InputError(
                f"{self.directory / str(step)} is of other networks: {name} has shape {found.get(name, 'none')}, here "
                f"{asked.get(name, 'none')} ({len(wrong)} such); train into another folder, or remove it"
            )

    def _say_what_is_unfinished(self) -> None:
        for folder in sorted(self.directory.glob(f"*{_UNFINISHED}*")):
            self.say(f"skipping {folder}: its writing was not finished")

    def _say_what_differs(self, saved: dict, step: int) -> None:
        asked = _plain(self.config)
        if other := [name for name in asked if name in saved and saved[name] != asked[name]]:
            changes = ", ".join(f"{name} was {saved[name]}, is {asked[name]}" for name in other)
            self.say(f"step {step} was made under another config: {changes}")


def gathered(params: Params) -> Params:
    """Whole parameters on every host, for writing them to one file."""
    if jax.process_count() == 1:
        return params
    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), params)


def _flat(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _plain(config: FitConfig) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))
