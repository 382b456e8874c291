"""References of a prepared video: the paper's rule on its stored 3D-IoU."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatia_jax.cameras import Cameras
from spatia_jax.data.conditioning import ConditioningConfig, Sequence, condition, cut
from spatia_jax.memory import RetrievalConfig, VoxelIoU, retrieve_by_overlap
from spatia_jax.splat import SplatConfig


def by_the_paper(overlap: np.ndarray, available: np.ndarray, threshold: float, most: int) -> list[int]:
    """Supplementary Algorithm 1 as it is printed: a set, in the order of the targets."""
    found: list[int] = []
    for row in overlap:
        candidates = [j for j in range(len(row)) if available[j]]
        best = max(candidates, key=lambda j: row[j], default=None)
        if best is not None and row[best] > threshold and best not in found:
            found.append(best)
    return found[:most]


@pytest.mark.parametrize("seed", range(5))
def test_stored_overlap_is_searched_as_the_paper_says(seed):
    rng = np.random.default_rng(seed)
    overlap, available = rng.random((6, 9)).astype(np.float32) ** 3, rng.random(9) < 0.6
    slots, scores, found = retrieve_by_overlap(jnp.asarray(overlap), jnp.asarray(available), 0.2, 4)
    expected = by_the_paper(overlap, available, 0.2, 4)
    assert list(np.asarray(slots)[np.asarray(found)]) == expected
    assert int(found.sum()) == len(expected)
    assert (np.asarray(scores)[np.asarray(found)] > 0.2).all()


def test_a_cut_takes_the_overlap_of_its_views_with_its_past():
    t = 12
    cameras = Cameras(jnp.tile(jnp.eye(3, 4), (t, 1, 1)), jnp.ones((t, 4)))
    overlap = jnp.arange(t * t, dtype=jnp.float32).reshape(t, t)
    sequence = Sequence(jnp.zeros((t, 2, 2, 3)), jnp.zeros((t, 2, 2)), jnp.zeros((t, 2, 2), bool), cameras, overlap)

    def given(start):
        return cut(sequence, start, num_history=3, num_new=4, map_stride=2, opening=False)

    for found in (given(7), jax.jit(given)(7)):
        np.testing.assert_array_equal(found.overlap, overlap[4:11][:, ::2])
        assert found.clip.overlap is None
    assert cut(sequence, 1, num_history=1, num_new=4, map_stride=2, opening=True).overlap is None


def test_references_come_from_the_stored_overlap_where_the_experiment_retrieves_by_iou():
    """Frame k is of brightness k; the stored overlap says that frame 2 saw what the clip sees."""
    t, size = 10, 8
    frames = jnp.broadcast_to(jnp.arange(t, dtype=jnp.uint8)[:, None, None, None], (t, size, size, 3))
    poses = jnp.tile(jnp.eye(3, 4), (t, 1, 1)).at[:, 0, 3].set(-0.01 * jnp.arange(t))
    cameras = Cameras(poses, jnp.tile(jnp.array([1.0, 1.0, 0.5, 0.5]), (t, 1)))
    overlap = jnp.zeros((t, t)).at[:, 2].set(0.5).at[:, 6].set(0.9)  # 6 is in the history: not available
    sequence = Sequence(frames, jnp.full((t, size, size), 2.0), jnp.zeros((t, size, size), bool), cameras, overlap)
    given = cut(sequence, 7, num_history=3, num_new=3, map_stride=2, opening=False)

    settings = SimpleNamespace(capacity=300, voxel_size=0.01, pixel_stride=1, retrieval=RetrievalConfig(VoxelIoU()))

    @jax.jit
    def references(given):
        return condition(
            given, jax.random.key(0), num_references=2, target_stride=3, config=ConditioningConfig(map_stride=2),
            memory_config=settings, splat_config=SplatConfig(radius=0.2, points_per_pixel=2),
        ).references  # fmt: skip

    # The second is missing: the oldest history frame stands in for it.
    assert list(np.asarray(references(given))[:, 0, 0, 0]) == [2, 4]
