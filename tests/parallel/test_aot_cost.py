"""Pricing of a compiled program whose text was written by hand, so that every second in it is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from spatia_jax.parallel.aot.chips import CHIPS, Slice
from spatia_jax.parallel.aot.cost import PALLAS_EFFICIENCY, estimate, wire_seconds
from spatia_jax.parallel.aot.hlo import group, parse

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
MS = 1_750_000  # cycles of a v5p chip in a millisecond

PROGRAM = f"""HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[]{{:T(128)}}, f32[8]{{0}}) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %work = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%anything, {CYCLES % MS}
  %sum = f32[25000000]{{0}} all-reduce(%work), channel_id=7, replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%add
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%x, /*index=1*/%work)
}}

%anything (p: f32[8]) -> f32[8] {{
  ROOT %q = f32[8]{{0}} parameter(0)
}}, execution_thread="sparsecore"

%condition (p: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(7)
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %c = pred[] compare(%i, %limit), direction=LT
}}

%started (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %gather = bf16[100000000]{{0}} all-gather(%p), channel_id=9, replica_groups=[2,2]<=[4], dimensions={{0}}
  ROOT %c = f32[8]{{0}} custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %gather = bf16[100000000]{{0}} all-gather(%p), channel_id=9, replica_groups=[2,2]<=[4], dimensions={{0}}
}}

%done (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %gather = bf16[100000000]{{0}} all-gather(%p), channel_id=9, replica_groups=[2,2]<=[4], dimensions={{0}}
  ROOT %c = f32[8]{{0}} custom-call(%gather), custom_call_target="AsyncCollectiveDone"
}}

%cheap (p: f32[8]) -> f32[8] {{
  ROOT %n = f32[8]{{0}} negate(%p), {CYCLES % MS}
}}

%dear (p: f32[8]) -> f32[8] {{
  ROOT %n = f32[8]{{0}} negate(%p), {CYCLES % (2 * MS)}
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  %three = s32[] constant(3)
  %init = (s32[], f32[8]{{0}}) tuple(%three, %a)
  %loop = (s32[], f32[8]{{0}}) while(%init), condition=%condition, body=%body
  %start = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%started
  %meanwhile = f32[8]{{0}} fusion(%start), kind=kOutput, calls=%async_collective_fusion.1, {CYCLES % (MS // 2)}
  %end = f32[8]{{0}} fusion(%meanwhile), kind=kCustom, calls=%done
  %either = f32[8]{{0}} conditional(%i, %a, %a), branch_computations={{%cheap, %dear}}
  %splash_mha_fwd.1 = bf16[24,1024,128]{{2,1,0}} custom-call(%a), custom_call_target="tpu_custom_call", \
operand_layout_constraints={{s8[1,1]{{1,0}}, bf16[24,1024,128]{{2,1,0}}, bf16[24,2048,128]{{2,1,0}}}}, \
frontend_attributes={{kernel_metadata={{
"xprof_metadata":"a line of its own"
}}}}, metadata={{}}
  %scatter_offload.3 = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%anything, {CYCLES % (2**63 - 1)}
  ROOT %tile_kernel = f32[8]{{0}} custom-call(%a), custom_call_target="tpu_custom_call"
}}
"""


@pytest.fixture
def place() -> Slice:
    """Four chips in a row; a real slice of that shape does not exist."""
    devices = tuple(SimpleNamespace(coords=[i, 0, 0]) for i in range(4))
    return Slice("v5p:4x1x1", CHIPS["v5p"], devices)


def test_loops_count_as_often_as_they_run(place):
    module = parse(PROGRAM)
    (loop,) = (i for i in module.computations["main"] if i.opcode == "while")
    assert module.trips(loop, "main") == 4  # from 3 up to 7
    cost = estimate(module, place)
    assert cost.counts["all-reduce"] == 4
    assert cost.bytes["all-reduce"] == 4 * 100_000_000


@pytest.mark.parametrize(
    "test",
    [
        "compare(%i, %limit), direction=GT",  # down to something, whose start is not read
        "compare(%halved, %limit), direction=LT",
        "fusion(%p), kind=kLoop, calls=%anything",
    ],
)
def test_loops_whose_end_depends_on_data_count_once_and_are_named(test, place):
    text = PROGRAM.replace("compare(%i, %limit), direction=LT", test)
    text = text.replace("  ROOT %c = pred[]", "  %halved = s32[] shift-right-logical(%i, %i)\n  ROOT %c = pred[]", 1)
    cost = estimate(parse(text), place)
    assert cost.counts["all-reduce"] == 1
    assert cost.unpriced["a loop of unknown length"] == 1


def test_every_second_is_accounted_for(place):
    cost = estimate(parse(PROGRAM), place)
    # In the loop: 1 ms of work, and 2 x 1/2 x 100 MB of a sum over one link of 100 GB/s, for which the cores wait.
    assert cost.compute == pytest.approx(4e-3 + 0.5e-3 + 2e-3)
    # The gather moves half of 200 MB, 1 ms, of which half a millisecond is behind the fusion.
    assert cost.exposed == pytest.approx(4 * 1e-3 + 0.5e-3)
    kernel = 2 * 2 * 24 * 1024 * 2048 * 128 / (PALLAS_EFFICIENCY * 459e12)
    assert cost.kernels == pytest.approx(kernel)
    assert cost.seconds == pytest.approx(cost.compute + cost.exposed + cost.kernels)


def test_an_asynchronous_collective_counts_once_and_other_kernels_are_named(place):
    cost = estimate(parse(PROGRAM), place)
    assert cost.counts["all-gather"] == 1
    assert cost.unpriced == {"tile_kernel": 1, "scatter_offload": 1}


def test_links_of_a_group(place):
    size, link = 10**9, CHIPS["v5p"].link_bandwidth
    assert wire_seconds("all-gather", size, (0, 1), place) == pytest.approx(size / 2 / link)
    ring = wire_seconds("all-gather", size, (0, 1, 2, 3), place)  # four in a ring: both ways round
    assert ring == pytest.approx(size * 3 / 4 / (2 * link))
    assert wire_seconds("all-reduce", size, (0, 1, 2, 3), place) == pytest.approx(2 * ring)
    assert wire_seconds("collective-permute", size, (0, 1), place) == pytest.approx(size / link)
    assert wire_seconds("all-gather", size, (2,), place) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", (0, 2)),
        ("replica_groups=[2,2]<=[4], dimensions={0}", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", (0, 2)),
        ("replica_groups=mesh['a'=4,'b'=1], device_ids=([2,2]T(1,0)) {'a'}, dimensions={0}", (0, 2, 1, 3)),
        ("source_target_pairs={{0,1},{1,2},{2,3}}", (0, 1)),
        ("replica_groups={}", (0, 1, 2, 3)),
    ],
)
def test_groups_are_read_in_every_spelling(text, expected):
    assert group(text, 4) == expected
