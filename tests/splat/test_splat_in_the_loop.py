"""The clip step and the training examples show the same with the fast renderer as with the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs.micro import experiment

from spatia_jax import stages
from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import ConditioningConfig, Sequence, condition, cut
from spatia_jax.model import Model
from spatia_jax.splat import Projection
from spatia_jax.world import open_world


def with_algorithm(name: str) -> Model:
    config = experiment()
    return Model(dataclasses.replace(config, splat=dataclasses.replace(config.splat, algorithm=name)))


def views(count: int) -> Cameras:
    pose = jnp.broadcast_to(jnp.eye(3, 4), (count, 3, 4)).at[:, 0, 3].set(0.05 * jnp.arange(count))
    return Cameras(pose, jnp.tile(jnp.array([0.9, 0.9, 0.5, 0.5]), (count, 1)))


def assert_same(a: Projection, b: Projection):
    assert float((a.coverage > 0).mean()) > 0.3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


@pytest.mark.slow
def test_the_projection_stage_of_a_clip_does_not_depend_on_the_algorithm():
    seen = []
    for name in ("auto", "peel"):
        model = with_algorithm(name)
        size = model.config.clip.height, model.config.clip.width
        photo = jax.random.randint(jax.random.key(0), (*size, 3), 0, 256).astype(jnp.uint8)
        depth = 2.0 + jnp.linspace(0, 1, size[1]) * jnp.ones(size)
        world = open_world(model, photo, depth, views(1)[0], jax.random.key(1))
        seen.append(stages.project(model, world, views(4)))
    assert_same(*seen)


@pytest.mark.slow
def test_training_examples_do_not_depend_on_the_algorithm():
    seen = []
    for name in ("auto", "peel"):
        config = with_algorithm(name).config
        shape = 12, config.clip.height, config.clip.width
        frames = jax.random.randint(jax.random.key(0), (*shape, 3), 0, 256).astype(jnp.uint8)
        sequence = Sequence(frames, jnp.full(shape, 2.5), jnp.zeros(shape, bool), views(12))
        clip = cut(sequence, 6, num_history=3, num_new=4, map_stride=4, opening=False)
        example = condition(
            clip, jax.random.key(2), num_references=2, target_stride=2,
            config=ConditioningConfig(), memory_config=config.memory, splat_config=config.splat,
        )  # fmt: skip
        seen.append(example.projection)
    assert_same(*seen)
