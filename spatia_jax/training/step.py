"""The train step: a pure function of state, batch and key, and how its state is made on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spatia_jax.parallel import state_shardings
from spatia_jax.training.options import FitConfig
from spatia_jax.training.state import Params, TrainState, join, split


class Objective(Protocol):
    """What is trained: how parameters start, and what is small when they are good."""

    def init(self, key: Array) -> Params: ...

    def loss(self, params: Params, batch: Any, keys: Array) -> tuple[Array, Mapping[str, Array]]:
        """Mean loss over a batch, and numbers to report; `keys` [b], one for each row.

        So what is drawn for a row does not depend on the rows beside it: any split of a batch over devices, hosts or
        time means the same.
        """
        ...


def make_state(
    objective: Objective, config: FitConfig, key: Array, start: Params | None = None, frozen: Params | None = None
) -> TrainState:
    """The state at step 0; pure, so that it can be traced for its shapes.

    Args:
        start: networks to start from instead of `objective.init`; those that it lacks are fresh.
        frozen: further networks that the objective uses.
    """
    params = {**objective.init(key), **(start or {})}
    rest: Params = {}
    if config.train_only:
        params, rest = split(params, config.train_only)
    held = jax.tree.map(
        lambda leaf: leaf.astype(config.frozen_dtype) if leaf.ndim > 1 else leaf, join(frozen or {}, rest)
    )
    return TrainState.create(params, config.optimizer.build(config.steps), held)


def initial_state(
    objective: Objective, config: FitConfig, mesh: Mesh, start: Params | None = None, frozen: Params | None = None
) -> TrainState:
    """`make_state`, born where it belongs: no device ever holds more than its own pieces."""

    def make(key: Array, start: Params | None, frozen: Params | None) -> TrainState:
        return make_state(objective, config, key, start, frozen)

    key = jax.random.key(config.seed)
    shardings = state_shardings(jax.eval_shape(make, key, start, frozen), mesh)
    return jax.jit(make, out_shardings=shardings)(key, start, frozen)


def make_train_step(objective: Objective, config: FitConfig) -> Callable:
    """`train_step(state, batch, key) -> state, metrics`, pure; `key` is that of the run."""
    optimizer = config.optimizer.build(config.steps)

    def train_step(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), config.batch_size)

        def loss(params: Params, batch: Any, keys: Array) -> tuple[Array, Mapping[str, Array]]:
            return objective.loss(join(params, state.frozen), batch, keys)

        gradients, value, metrics = _gradients(loss, state.params, batch, keys, config.accumulate)
        norm = optax.global_norm(gradients)
        state = state.apply(gradients, optimizer, config.optimizer.ema_decay)
        return state, {"loss": value, "gradient_norm": norm, **metrics}

    return train_step


def compile_train_step(objective: Objective, config: FitConfig, shardings: TrainState, mesh: Mesh) -> Callable:
    """The step as a program for `mesh`: the state stays where it lies, and the old one's memory is used again."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(make_train_step(objective, config), donate_argnums=0, out_shardings=(shardings, everywhere))


def _gradients(
    loss: Callable, params: Params, batch: Any, keys: Array, parts: int
) -> tuple[Params, Array, Mapping[str, Array]]:
    """Gradient, loss and metrics of a batch, meant over `parts` of it that are computed one after another."""

    def one(batch: Any, keys: Array) -> tuple:
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, keys)
        return gradients, value, dict(metrics)

    if parts == 1:
        return one(batch, keys)
    # Every parts-th row: a device's rows stay on it.
    batch, keys = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), (batch, keys))

    def add(total: Any, part: tuple) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    shapes = jax.eval_shape(one, *jax.tree.map(lambda leaf: leaf[0], (batch, keys)))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, (batch, keys))
    return jax.tree.map(lambda leaf: leaf / parts, total)
