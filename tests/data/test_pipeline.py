"""Global batches do not depend on how many hosts or workers read them, nor on where a run was stopped."""

from __future__ import annotations

import grain
import numpy as np
import pytest
from absl import flags

from spatia_jax.data.pipeline import Host, batched, mixture, shuffled
from spatia_jax.errors import InputError

BATCH, STEPS = 4, 9


def rows(first: int, count: int) -> list[dict]:
    return [{"id": np.int64(first + i)} for i in range(count)]


def vary(row: dict, rng: np.random.Generator) -> dict:
    return row | {"cut": rng.integers(1_000_000)}


def one_source() -> grain.MapDataset:
    return shuffled(rows(0, 10), 3).random_map(vary)


def two_sources() -> grain.MapDataset:
    return mixture([shuffled(rows(0, 10), 3), shuffled(rows(100, 7), 5)], [3, 1]).seed(1).random_map(vary)


ELEMENTS = pytest.mark.parametrize("elements", [one_source, two_sources])


def assert_same(batch: dict, expected: dict) -> None:
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value)


@ELEMENTS
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_parts_of_all_hosts_are_the_global_batch(elements, hosts):
    whole = batched(elements(), BATCH)
    parts = [batched(elements(), BATCH, Host(index, hosts)) for index in range(hosts)]
    for step in range(STEPS):
        pieces = [part[step] for part in parts]
        assert all(len(piece["id"]) == BATCH // hosts for piece in pieces)
        assert_same({name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}, whole[step])


@ELEMENTS
@pytest.mark.parametrize("threads", [1, 4])
def test_a_run_goes_on_where_it_stopped(elements, threads):
    """From the step alone; with another number of hosts than before."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    batches = iter(batched(elements(), BATCH).to_iter_dataset(options))
    whole = [next(batches) for _ in range(STEPS)]
    for index in range(2):
        resumed = iter(batched(elements(), BATCH, Host(index, 2))[5:].to_iter_dataset(options))
        for step in range(5, STEPS):
            share = slice(index * 2, index * 2 + 2)
            assert_same(next(resumed), {name: value[share] for name, value in whole[step].items()})


@pytest.mark.slow
def test_worker_processes_change_nothing():
    flags.FLAGS.mark_as_parsed()  # Grain asks absl, whose own main has not run
    whole = batched(two_sources(), BATCH)
    workers = grain.MultiprocessingOptions(num_workers=2)
    batches = iter(whole.to_iter_dataset().mp_prefetch(workers))
    for step in range(STEPS):
        assert_same(next(batches), whole[step])


def test_an_epoch_sees_everything_once():
    ids = np.concatenate([batched(one_source(), 5)[step]["id"] for step in range(4)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert (ids[:10] != ids[10:]).any()


def test_a_mixture_has_its_proportions_and_each_part_its_order():
    ids = np.array([two_sources()[i]["id"] for i in range(400)])
    assert abs((ids >= 100).mean() - 0.25) < 0.01
    alone = [shuffled(rows(100, 7), 5)[i]["id"] for i in range(20)]
    np.testing.assert_array_equal(ids[ids >= 100][:20], alone)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batched(one_source(), 6, Host(0, 4)), "a batch of 6 for 4 hosts: it must be a multiple of 4"),
        (lambda: Host(2, 2), "host 2 of 2: expected an index from 0 to 1"),
        (lambda: mixture([one_source()], [1, 2]), "1 data sets with weights"),
        (lambda: mixture([one_source(), one_source()], [1, 0]), "above 0"),
    ],
)
def test_bad_sizes_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_data_sets_together_are_mixed_by_batch_and_read_one_after_another():
    from spatia_jax.data import Together
    from spatia_jax.training.batches import Batches, together

    rooms, videos = rows(0, 10), rows(100, 7)
    both = Together([rooms, videos])
    assert [both[i]["id"] for i in range(len(both))] == [row["id"] for row in rooms + videos]
    assert list(both.weights) == [10, 7]
    with pytest.raises(IndexError):
        both[17]
    parts = [Batches((shuffled(rooms, 1), shuffled(rows(50, 5), 2)), 2, (0.5, 0.5)), Batches((shuffled(videos, 3),), 2)]
    mixed = together(parts, [3, 1])
    firsts = np.array([mixed[step]["id"][0] for step in range(400)])
    shares = [np.mean((firsts >= low) & (firsts < low + 50)) for low in (0, 50, 100)]
    np.testing.assert_allclose(shares, [0.375, 0.375, 0.25], atol=0.01)
    for step in range(20):
        assert len({int(identity) // 50 for identity in mixed[step]["id"]}) == 1
        halves = [mixed.part(Host(index, 2))[step]["id"] for index in range(2)]
        np.testing.assert_array_equal(np.concatenate(halves), mixed[step]["id"])
