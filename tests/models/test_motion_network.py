"""The motion network: what it is shown of a known room, what it learns, when it is part of a model, what is refused."""

import dataclasses
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax import map_stage
from spatia_jax.cameras import Cameras
from spatia_jax.config import load_experiment
from spatia_jax.data.procedural import HELD_OUT, render, sample_path, sample_scene
from spatia_jax.errors import InputError
from spatia_jax.mapper.motion import MotionConfig
from spatia_jax.mapper.motion_cues import OFFSETS, Cues, motion_cues
from spatia_jax.model import Model
from spatia_jax.models.motion import NUM_DIFFERENCES, NUM_SCALARS, MotionNetworkConfig
from spatia_jax.splat import Projection
from spatia_jax.training import Batches, FitConfig, OptimizerConfig, fit
from spatia_jax.training.examples import load_examples
from spatia_jax.training.motion import build_motion, guess_depth, halved, make_walk, motion_batches, pack, unpack
from spatia_jax.training.objectives import MotionObjective
from spatia_jax.weights.bundle import check_weights
from spatia_jax.world import new_world

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "micro.py"
K, H, W = 3, 32, 64


@pytest.fixture(scope="module")
def model():
    return Model(load_experiment(CONFIG).tracked())


def views_in_place(count):
    """Cameras that stand still."""
    lens = jnp.array([0.8, 0.8 * W / H, 0.5, 0.5])
    return Cameras(jnp.broadcast_to(jnp.eye(3, 4), (count, 3, 4)), jnp.broadcast_to(lens, (count, 4)))


def wall(shift):
    """[h, w, 3] a wall 2 m ahead, seen by a camera that has gone aside by so many pixels."""
    columns = jnp.arange(W) + shift
    rows = jnp.arange(H)[:, None]
    return jnp.stack([0.5 + 0.2 * jnp.sin(columns / 5 + k + rows / (7 + k)) for k in range(3)], axis=-1)


def room(square: bool) -> Cues:
    """Cues of keyframes that pass a wall, with or without a red square that stands still in the picture."""
    steps = jnp.arange(K + 2.0)  # pixels = metres * focal length / depth
    cameras = views_in_place(K + 2)
    poses = cameras.cam_from_world.at[:, 0, 3].set(-steps * 2 / (0.8 * W))
    cameras = dataclasses.replace(cameras, cam_from_world=poses)
    clean = jnp.stack([wall(step) for step in steps])
    frames = clean.at[:, 10:20, 30:40].set(jnp.array([1.0, 0.0, 0.0])) if square else clean
    depth = jnp.full((K, H, W), 2.0)
    return jax.jit(motion_cues, static_argnums=0)(
        MotionConfig(), frames[2:], depth, cameras[2:], clean[2:], depth, frames[:2], cameras[:2]
    )


def test_a_static_room_contradicts_nothing():
    cues = room(square=False)
    assert cues.differences.shape == (K, H // 2, W // 2, NUM_DIFFERENCES, 3)
    assert cues.scalars.shape == (K, H // 2, W // 2, NUM_SCALARS)
    assert jnp.abs(cues.differences[:, :, 4:-4]).max() < 0.05
    shows = cues.scalars[..., 5 : 5 + len(OFFSETS)]
    assert shows[1, 1:-1, 4:-4, :3].all()
    assert not shows[1, ..., 3].any()  # the middle keyframe has but one after it
    np.testing.assert_allclose(cues.scalars[..., 4], 1 / 3, atol=1e-6)


def test_what_moves_differs_from_the_map_and_at_its_ends_from_the_views_beside():
    still, cues = room(square=False), room(square=True)
    assert jnp.abs(cues.differences[:, 5:10, 15:20, 0]).max(-1).min() > 0.3
    beside = jnp.abs(cues.differences - still.differences)[:, :, :, 1:].max(-1)
    assert beside[:, 6:9, 14:21].max() > 0.3
    assert beside[:, :3].max() < 1e-5


def test_cues_are_finite_where_nothing_is_known():
    nowhere, cameras = jnp.zeros((K, H, W)), views_in_place(K)
    color = jnp.zeros((K, H, W, 3))
    cues = motion_cues(MotionConfig(), color, nowhere, cameras, color, nowhere, color[:2], cameras[:2])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(cues))
    assert max(float(jnp.abs(leaf).max()) for leaf in (cues.differences, cues.scalars)) <= 1


def random_batch(count=4):
    """Packed keyframes in which a rectangle differs from the map; only there things move."""
    rng = np.random.default_rng(0)
    moving = np.zeros((count, H, W), bool)
    for mask, row, column in zip(moving, rng.integers(16, size=count), rng.integers(40, size=count), strict=True):
        mask[row : row + 12, column : column + 20] = True
    differences = 0.03 * rng.normal(size=(count, H, W, NUM_DIFFERENCES, 3))
    differences[..., 0, :] += 0.4 * moving[..., None]
    scalars = rng.uniform(-1, 1, (count, H, W, NUM_SCALARS))
    arrays = (jnp.asarray(rng.random((count, H, W, 3))), jnp.asarray(differences).clip(-1, 1), jnp.asarray(scalars))
    return pack(Cues(*(array.astype(jnp.float32) for array in arrays)), jnp.asarray(moving))


@pytest.mark.slow
def test_learns_what_moves(model, tmp_path):
    batch = jax.tree.map(np.asarray, random_batch())

    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(4)]
    batches = Batches((grain.MapDataset.source(rows).repeat(),), 4)
    config = FitConfig(steps=60, batch_size=4, optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5))
    params = fit(MotionObjective(model), config, batches, tmp_path, say=lambda line: None).ema
    cues, moving = unpack(batch)
    found = np.asarray(jax.jit(model.find_motion)({"motion": params}, cues)) > 0
    assert (found & moving).sum() / (found | moving).sum() > 0.8


def test_packing_loses_little():
    rng = np.random.default_rng(1)
    shapes = ((2, 4, 4, 3), (2, 4, 4, 5, 3), (2, 4, 4, 13))
    cues = Cues(*(jnp.asarray(rng.random(shape), jnp.float32) for shape in shapes))
    back, _ = unpack(pack(cues, jnp.zeros((2, 4, 4), bool)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=0.5 / 127 + 1e-6), cues, back)


def test_guessed_depth_is_wrong_as_a_network_is():
    depth = np.full((3, 32, 64), 2.0, np.float32)
    depth[:, :, 32:] = 4.0
    guessed = guess_depth(depth, np.random.default_rng(0))
    assert guessed.shape == depth.shape
    ratio = np.log(guessed / depth)
    assert 0.02 < ratio[:, 4:-4, 8:24].std() < 1
    step = np.abs(np.diff(np.log(guessed), axis=2))
    assert step.max() < 0.5 * np.log(2)  # the edge is blurred


@pytest.mark.slow
def test_a_walk_is_the_keyframes_of_a_video(model):
    walk, scene = make_walk(model.config, 0), sample_scene(0)
    np.testing.assert_array_equal(walk.numbers, [0, 2, 4, 6, 8, 10, 12])
    whole = sample_path(0, scene, 13, "there_and_back")
    np.testing.assert_array_equal(walk.cameras.cam_from_world, whole.cam_from_world[::2])
    late = render(scene, whole[8:9], jnp.array([8 / 12]), 32, 64)
    np.testing.assert_array_equal(walk.moving[4], late.moving[0])
    clip = dataclasses.replace(model.config.clip, opening_frames=9, history_frames=5)
    memory = dataclasses.replace(model.config.memory, map_stride=3)
    with pytest.raises(InputError, match="multiple of 3"):
        make_walk(dataclasses.replace(model.config, clip=clip, memory=memory), 0)


@pytest.mark.slow
def test_examples_come_from_the_mapper_and_go_on_where_they_stopped(model, tmp_path):
    said: list[str] = []
    build_motion(model.config, tmp_path, scenes=2, shard_size=1, say=said.append)
    assert said == ["motion: 1/2 scenes", "motion: 2/2 scenes"]
    rows = load_examples(tmp_path, "motion")
    per_scene = 3 + 2 + 2  # clips of 5, 4 and 4 frames
    assert rows["frames"].shape == (2 * per_scene, 16, 32, 3)
    assert rows["differences"].any()
    walk = make_walk(halved(model.config), 0)
    np.testing.assert_array_equal(rows["frames"][:per_scene], walk.frames)
    np.testing.assert_array_equal(rows["moving"][:per_scene], walk.moving)
    (tmp_path / "motion-00001.npz").unlink()
    build_motion(model.config, tmp_path, scenes=2, shard_size=1, say=said.append)
    assert len(said) == 3
    jax.tree.map(np.testing.assert_array_equal, load_examples(tmp_path, "motion"), rows)
    batches = motion_batches(tmp_path, batch_size=2, seed=0)
    np.testing.assert_array_equal(batches[5]["frames"], batches[5]["frames"])
    with pytest.raises(InputError, match="held-out"):
        build_motion(model.config, tmp_path, scenes=9, first_seed=HELD_OUT - 1)


def test_is_there_where_cameras_are_tracked_and_old_folders_are_told_how_to_do_without(model, tmp_path):
    assert "motion" not in Model(load_experiment(CONFIG)).parts
    assert "motion" in model.parts
    without = Model(dataclasses.replace(model.config, motion=None))
    assert "motion" not in without.parts
    with pytest.raises(InputError, match="no weights of the motion.*; set motion = None"):
        check_weights(model, tmp_path, ["motion"])


def test_the_threshold_decides(model, monkeypatch):
    """A network that says the same of every pixel: all of them move, or none."""
    params = {"motion": model.init("motion", jax.random.key(0))}  # starts at even odds
    tracked = map_stage.Tracked(
        frames=jnp.zeros((K, H, W, 3)), cameras=views_in_place(K), path=views_in_place(K), prior=jnp.ones((K, H, W)),
        depth=jnp.ones((K, H, W)), seen=Projection(jnp.zeros((K, H, W, 3)), jnp.zeros((K, H, W)), jnp.zeros((K, H, W))),
    )  # fmt: skip
    world = new_world(model, jax.random.key(0))
    half = (K, H // 2, W // 2)
    cues = Cues(jnp.zeros((*half, 3)), jnp.zeros((*half, NUM_DIFFERENCES, 3)), jnp.zeros((*half, NUM_SCALARS)))
    monkeypatch.setattr(map_stage, "motion_cues_of", lambda *_: cues)  # whatever it is shown
    for threshold, moves in ((0.4, True), (0.6, False)):
        motion = dataclasses.replace(model.config.motion, threshold=threshold)
        decided = Model(dataclasses.replace(model.config, motion=motion))
        found = map_stage.find_moving(decided, params, world, tracked)
        assert found.all() == moves == found.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widths": (12,)}, "motion.widths .* multiples of 8"),
        ({"widths": ()}, "motion.widths"),
        ({"seen": 0}, "motion.seen"),
        ({"threshold": 1.0}, "between 0 and 1"),
    ],
)
def test_bad_configs_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        MotionNetworkConfig(**change)


def test_frames_that_cannot_be_halved_so_often_are_refused(model):
    with pytest.raises(InputError, match="clip.height is 32; it must be a multiple of 64"):
        dataclasses.replace(model.config, motion=MotionNetworkConfig(widths=(8,) * 5))
