"""Visibility, assignment, the two retrieval strategies, and the frame bank that they choose from."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.errors import InputError
from spatia_jax.memory import (
    OBSERVED,
    CovisibleAssignment,
    RetrievalConfig,
    VoxelIoU,
    empty,
    empty_bank,
    insert,
    remember,
    retrieve,
    visibility,
)  # fmt: skip
from spatia_jax.memory.assignment import assign
from spatia_jax.memory.retrieval import common

H, W = 18, 32
ASSIGN = jax.jit(assign)


def along_x(xs, f=1.0) -> Cameras:
    """Cameras that stand at (x, 0, 0) and look along z."""
    poses = jnp.tile(jnp.eye(3, 4), (len(xs), 1, 1)).at[:, 0, 3].set(-jnp.asarray(xs, jnp.float32))
    return Cameras(poses, jnp.tile(jnp.array([f, f * W / H, 0.5, 0.5]), (len(xs), 1)))


def wall(n=2000, seed=0):
    """Points on the wall z = 2, 12 m wide."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform([-6, -0.5, 2], [6, 0.5, 2.0001], (n, 3)), jnp.float32)


def test_visibility_equals_a_loop_over_points():
    rng = np.random.default_rng(0)
    positions = rng.uniform([-2, -2, -1], [2, 2, 4], (500, 3)).astype(np.float32)
    positions[:20] = positions[20:40]  # exact ties are both visible
    positions[40] = np.nan
    valid, cameras = rng.random(500) < 0.8, along_x([0.0, 0.4])
    seen = visibility(jnp.asarray(positions), jnp.asarray(valid), cameras, H, W, 0.05)
    for view in range(2):
        uv, depth = map(np.asarray, cameras[view].project(jnp.asarray(positions), H, W))
        nearest, pixel = {}, {}
        for i in range(500):
            if valid[i] and depth[i] > 0:
                column, row = np.floor(uv[i] + 0.5)
                if 0 <= column < W and 0 <= row < H:
                    pixel[i] = (row, column)
                    nearest[row, column] = min(nearest.get((row, column), np.inf), depth[i])
        expected = [i in pixel and depth[i] <= nearest[pixel[i]] + np.float32(0.05) for i in range(500)]
        assert 20 < sum(expected) < len(pixel)
        np.testing.assert_array_equal(seen[view], expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (3, 6)])
def test_assignment_is_the_cheapest_of_all(shape):
    rng = np.random.default_rng(sum(shape))
    rows = np.arange(shape[0])
    for largest in (3, 1000):  # many ties, then hardly any
        for _ in range(20):
            cost = rng.integers(-largest, largest, shape).astype(np.int32)
            chosen = np.asarray(ASSIGN(cost))
            assert len(set(chosen)) == len(rows)
            best = min(
                cost[rows, list(columns)].sum() for columns in itertools.permutations(range(shape[1]), len(rows))
            )
            assert cost[rows, chosen].sum() == best


def world(xs):
    points = wall()
    point_map = insert(empty(4000), points, jnp.ones_like(points), jnp.ones(len(points)), jnp.ones(len(points), bool),
                       provenance=OBSERVED, voxel_size=0.01)  # fmt: skip
    frames = jnp.zeros((len(xs), 2, 2, 3), jnp.uint8)
    return remember(empty_bank(8, 2, 2), frames, along_x(xs), 0), point_map


def run(strategy, bank_xs, target_xs, k=3):
    bank, point_map = world(bank_xs)
    config = RetrievalConfig(strategy, tolerance=0.05)
    return map(np.asarray, retrieve(bank, point_map, along_x(target_xs), config, num_references=k, height=H, width=W))


@pytest.mark.parametrize("strategy", [CovisibleAssignment(), VoxelIoU()])
def test_frames_at_the_same_place_are_found_in_the_targets_order(strategy):
    slots, scores, found = run(strategy, [-4.0, -2.0, 0.0, 2.0, 4.0], [2.0, -4.0, 0.0])
    np.testing.assert_array_equal(slots, [3, 0, 2])
    assert found.all()
    assert (scores > 0).all()


@pytest.mark.parametrize("strategy", [CovisibleAssignment(), VoxelIoU()])
def test_where_nothing_was_seen_nothing_is_found(strategy):
    slots, scores, found = run(strategy, [-4.0, -3.5], [4.0])
    assert not found.any()
    assert not slots.any()
    assert not scores.any()


def test_voxel_overlap_of_identical_views_is_one_and_needs_more_than_the_threshold():
    _, scores, found = run(VoxelIoU(), [0.0], [0.0], k=1)
    assert scores[0] == 1.0
    assert found[0]
    assert not list(run(VoxelIoU(threshold=1.0), [0.0], [0.0], k=1))[2][0]


def test_iou_gathers_a_set_and_assignment_gives_every_target_another_frame():
    bank, targets = [0.0, 0.5, 4.0], [0.0, 0.05]
    slots, _, found = run(VoxelIoU(), bank, targets)
    assert slots[found].tolist() == [0]
    slots, _, found = run(CovisibleAssignment(), bank, targets)
    assert sorted(slots[found].tolist()) == [0, 1]


def test_more_targets_than_frames_and_fewer_references_than_matches():
    slots, _, found = run(CovisibleAssignment(), [0.0, 2.0], [0.0, 1.0, 2.0])
    assert sorted(slots[found].tolist()) == [0, 1]
    slots, _, found = run(CovisibleAssignment(), [-2.0, 0.0, 2.0], [2.0, 0.0, -2.0], k=2)
    assert slots.tolist() == [2, 1]
    assert found.all()


def test_golden_visibility_counts_and_assignment(golden_dir):
    golden = np.load(golden_dir / "retrieval.npz")
    height, width = map(int, golden["image_hw"])
    positions = jnp.asarray(golden["points"])
    n = len(positions)
    intrinsics = jnp.asarray(golden["intrinsics_px"] / np.array([width, height, width, height]), jnp.float32)

    def sees(poses):
        cameras = Cameras(jnp.asarray(poses), jnp.tile(intrinsics, (len(poses), 1)))
        return visibility(positions, jnp.ones(n, bool), cameras, height, width, 1e-6, truncate=True)

    history, target = sees(golden["history_w2c"]), sees(golden["target_w2c"])
    np.testing.assert_array_equal(history, np.unpackbits(golden["history_visible"], axis=1)[:, :n])
    np.testing.assert_array_equal(target, np.unpackbits(golden["target_visible"], axis=1)[:, :n])
    shared = common(target, history)
    np.testing.assert_array_equal(shared, golden["intersection"])
    np.testing.assert_array_equal(shared.argmax(axis=1), golden["independent"])
    everything = jnp.ones(len(history), bool)
    chosen, scores, found = CovisibleAssignment(min_points=-1).match(positions, target, history, everything)
    np.testing.assert_array_equal(chosen, golden["hungarian"])
    np.testing.assert_array_equal(scores, golden["intersection"][np.arange(len(chosen)), chosen])
    assert bool(found.all())


def test_bank_fills_in_order_then_thins_the_path_and_keeps_both_ends():
    xs = np.arange(40.0)
    frames = jnp.asarray(xs, jnp.uint8)[:, None, None, None] * jnp.ones((1, 2, 2, 3), jnp.uint8)
    bank = remember(empty_bank(8, 2, 2), frames[:5], along_x(xs[:5]), clip=1)
    np.testing.assert_array_equal(bank.frames[:5], frames[:5])
    np.testing.assert_array_equal(bank.clip, [1] * 5 + [-1] * 3)
    bank = remember(bank, frames[5:], along_x(xs[5:]), clip=jnp.int32(2))
    kept = np.asarray(bank.frames)[:, 0, 0, 0]
    assert kept[0] == 0
    assert kept[-1] == 39
    assert (np.diff(kept.astype(int)) > 0).all()
    assert np.diff(kept.astype(int)).max() < 20  # no half of the path is forgotten
    np.testing.assert_allclose(bank.cameras.centers[:, 0], kept, atol=1e-6)
    np.testing.assert_array_equal(bank.clip, np.where(kept < 5, 1, 2))


def test_bank_forgets_the_older_of_two_frames_from_one_place():
    frames = jnp.arange(5, dtype=jnp.uint8)[:, None, None, None] * jnp.ones((1, 2, 2, 3), jnp.uint8)
    bank = remember(empty_bank(4, 2, 2), frames, along_x([0.0, 1.0, 10.0, 20.0, 1.0]), clip=0)
    np.testing.assert_array_equal(bank.frames[:, 0, 0, 0], [0, 2, 3, 4])


def test_bank_of_one_keeps_the_first_frame():
    frames = jnp.arange(3, dtype=jnp.uint8)[:, None, None, None] * jnp.ones((1, 2, 2, 3), jnp.uint8)
    bank = remember(empty_bank(1, 2, 2), frames, along_x([0.0, 1.0, 2.0]), clip=0)
    assert int(bank.frames[0, 0, 0, 0]) == 0


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="voxel_size"):
        VoxelIoU(voxel_size=0.0)
    with pytest.raises(InputError, match="capacity 0"):
        empty_bank(0, 2, 2)
