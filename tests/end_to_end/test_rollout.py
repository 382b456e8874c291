"""The loop: same seed, same bits; driver and scan agree; cost and memory do not grow."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import world as loop
from spatia_jax.cameras import Cameras
from spatia_jax.memory import OBSERVED
from spatia_jax.sampling import compiled
from spatia_jax.sampling.driver import Driver, NoProgress

CLIPS = 4


@pytest.fixture(scope="module")
def start(micro):
    """A world seen from one photo, and requests for the clips of a path that leaves and returns."""
    record, clip = micro.record, micro.model.config.clip
    index = np.minimum(np.arange(clip.frames_of(CLIPS)), len(record["frames"]) - 1)
    cameras = Cameras(jnp.asarray(record["cam_from_world"])[index], jnp.asarray(record["intrinsics"])[index])
    world = jax.jit(loop.open_world, static_argnums=0)(
        micro.model, record["frames"][0], jnp.asarray(record["depth"][0], jnp.float32), cameras[0], jax.random.key(3)
    )
    ids, mask = micro.tokenizer.encode(["a room", ""], clip.text_length)
    context, negative = jax.jit(micro.model.embed_text)(micro.params, ids, mask)
    bounds = [0, *range(clip.opening_frames, len(cameras) + 1, clip.new_frames)]
    requests = [
        loop.ClipRequest(cameras[a:b], context, negative, jnp.zeros((b - a, clip.height, clip.width), bool))
        for a, b in itertools.pairwise(bounds)
    ]
    return world, requests


def compiled_after(run):
    run()
    return compiled.versions()


def drive(micro, start):
    world, requests = start
    clips = []
    world = Driver(micro.model).run(
        micro.params, world, requests, [""] * len(requests), progress=NoProgress(),
        keep=lambda index, before, after, clip, seconds: clips.append(clip),
    )  # fmt: skip
    return world, clips


@pytest.fixture(scope="module")
def driven(micro, start):
    return drive(micro, start)


@pytest.fixture(scope="module")
def rolled(micro, start):
    world, requests = start
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *requests[1:])
    run = jax.jit(lambda params, *args: loop.rollout(micro.model, params, *args))
    return [run(micro.params, world, requests[0], stacked) for _ in range(2)]


def same_bits(a, b):
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(_arrays(a), _arrays(b), strict=True))


def _arrays(tree):
    def plain(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]


def test_driver_twice_gives_the_same_bits(micro, start, driven):
    assert same_bits(driven, drive(micro, start))


def test_rollout_twice_gives_the_same_bits(rolled):
    assert same_bits(rolled[0], rolled[1])


def test_driver_and_rollout_agree_to_rounding(driven, rolled):
    _, clips = driven
    _, first, rest = rolled[0]
    together = np.concatenate([first.frames, *np.asarray(rest.frames)])
    apart = np.concatenate([clip.frames for clip in clips])
    difference = np.abs(together.astype(int) - apart.astype(int))
    # Fused in another way, sums round differently; a byte may fall to the other side.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


def test_another_seed_gives_another_video(micro, start, driven):
    world, requests = start
    other = Driver(micro.model).run_clip(
        micro.params,
        loop.dataclasses.replace(world, key=jax.random.key(4)),
        requests[0],
        opening=True,
        progress=NoProgress(),
    )
    assert not np.array_equal(other[1].frames, driven[1][0].frames)


def test_continuing_clips_share_one_compiled_function(micro, start):
    before, requests = start
    few = compiled_after(lambda: drive(micro, (before, requests[:2])))
    assert few == compiled_after(lambda: drive(micro, start))
    world, clips = drive(micro, start)
    assert jax.tree.map(jnp.shape, world) == jax.tree.map(jnp.shape, before)
    assert len(clips) == CLIPS


def test_the_map_grows_but_what_was_observed_stays(start, driven):
    before, after = start[0].point_map, driven[0].point_map
    assert int(after.num_points) > int(before.num_points)

    def observed(point_map):
        rows = np.concatenate([point_map.positions, point_map.colors], axis=1)
        rows = rows[np.asarray(point_map.provenance) == OBSERVED]
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(observed(before), observed(after))


def test_masked_pixels_never_enter_the_map(micro, start):
    world, requests = start
    everything = loop.dataclasses.replace(requests[0], moving=jnp.ones_like(requests[0].moving))
    after, _ = jax.jit(lambda *args: loop.opening_step(micro.model, *args))(micro.params, world, everything)
    assert int(after.point_map.num_points) == int(world.point_map.num_points)


@pytest.mark.slow
def test_without_the_map_the_projection_changes_nothing(micro, start):
    from spatia_jax.evaluation.closed_loop import without_memory
    from spatia_jax.model import Model

    world, requests = start
    blind = Model(without_memory(micro.model.config))
    emptied = loop.dataclasses.replace(
        world, point_map=loop.dataclasses.replace(world.point_map, colors=world.point_map.colors * 0)
    )
    step = jax.jit(lambda params, world: loop.opening_step(blind, params, world, requests[0])[1].frames)
    np.testing.assert_array_equal(step(micro.params, world), step(micro.params, emptied))
    seeing = jax.jit(lambda params, world: loop.opening_step(micro.model, params, world, requests[0])[1].frames)
    assert not np.array_equal(seeing(micro.params, world), seeing(micro.params, emptied))
