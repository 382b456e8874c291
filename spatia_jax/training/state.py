"""What a training run is at a given step: parameters, their moving average, the optimizer's memory, the step.

Parameters are nested dicts. Which of them are trained is said by paths (`split`); the rest is carried along frozen, so
that training a LoRA or the control branch keeps neither gradients nor optimizer state of the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from spatia_jax.errors import InputError

Params = Any  # nested dicts of arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A training run between two steps.

    Attributes:
        step: int32 scalar, steps done.
        params, ema: what is trained; `ema` is what is evaluated and shipped.
        opt_state: the optimizer's own pytree.
        frozen: what is used and not trained; not in checkpoints, since it is where it was read from.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: Any
    frozen: Params = field(default_factory=dict)

    @classmethod
    def create(
        cls, params: Params, optimizer: optax.GradientTransformation, frozen: Params | None = None
    ) -> TrainState:
        average = jax.tree.map(jnp.copy, params)
        return cls(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), frozen or {})

    def apply(self, gradients: Params, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
        """The state after one optimizer step. Early on the average forgets faster, so that it leaves the start."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + self.step) / (10.0 + self.step))
        ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), self.ema, params)
        return TrainState(self.step + 1, params, ema, opt_state, self.frozen)

    @property
    def evaluated(self) -> Params:
        """All networks as they are evaluated: the average, and what is frozen."""
        return join(self.ema, self.frozen)

    @property
    def networks(self) -> Params:
        """Those of `evaluated` in which something is trained, whole."""
        return {name: self.evaluated[name] for name in self.ema}


def split(params: Params, paths: Iterable[str]) -> tuple[Params, Params]:
    """The parameters at or below `paths` ("transformer.control"), and the others.

    Raises:
        InputError: a path leads nowhere.
    """
    chosen: Params = {}
    for path in paths:
        *rooms, last = path.split(".")
        source, place = params, chosen
        for room in rooms:
            source, place = _enter(source, room, path), place.setdefault(room, {})
        place[last] = _enter(source, last, path)
    return chosen, _without(params, chosen)


def join(one: Params, other: Params) -> Params:
    """The union of two trees without a common leaf: undoes `split`."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one
    return {
        name: join(one[name], other[name]) if name in one and name in other else {**one, **other}[name]
        for name in (*one, *(name for name in other if name not in one))
    }


def _enter(tree: Params, name: str, path: str) -> Params:
    if not isinstance(tree, dict) or name not in tree:
        known = ", ".join(tree) if isinstance(tree, dict) else "nothing"
        raise InputError(f"fit.train_only: {path!r} leads to no parameters; there are: {known}")
    return tree[name]


def _without(tree: Params, chosen: Params) -> Params:
    rest = {}
    for name, value in tree.items():
        if name not in chosen:
            rest[name] = value
        elif isinstance(value, dict) and (below := _without(value, chosen[name])):
            rest[name] = below
    return rest
