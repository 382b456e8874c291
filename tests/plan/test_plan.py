"""The plan: exact where it counts shapes, monotonic, and honest when it refuses."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from configs.micro import experiment as micro

from configs.spatia_5b import experiment as released
from configs.tiny import experiment as tiny
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, param_specs
from spatia_jax.plan import device_memory, nbytes, plan, require_fit
from spatia_jax.plan.plan import PARTS
from spatia_jax.plan.refusal import ways_out
from spatia_jax.plan.xla import compile_step
from spatia_jax.sampling import command
from spatia_jax.world import new_world


@pytest.fixture(scope="module")
def planned():
    return plan(micro(), MeshConfig())


def row_bytes(planned, *names):
    return sum(row.bytes for row in planned.rows if row.name in names)


@pytest.mark.slow
def test_bytes_on_one_device_are_those_of_the_arrays(planned):
    model = Model(micro())
    params = {name: model.init(name, jax.random.key(0)) for name in model.networks}
    for name in model.networks:
        assert row_bytes(planned, name) == sum(leaf.nbytes for leaf in jax.tree.leaves(params[name]))
    world = new_world(model, jax.random.key(0))
    for name, part in (("point map", world.point_map), ("frame bank", world.frame_bank)):
        assert row_bytes(planned, name) == sum(leaf.nbytes for leaf in jax.tree.leaves(part))


MESHES = [
    MeshConfig(2, 2, 1, 2),
    *(pytest.param(m, marks=pytest.mark.slow) for m in (MeshConfig(fsdp=4), MeshConfig(tensor=2))),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_devices_together_hold_every_array_once_for_each_copy(mesh):
    params = Model(micro()).abstract_params()
    specs = jax.tree.leaves(param_specs(params, mesh), is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    axes = dataclasses.asdict(mesh)
    expected = 0
    for leaf, spec in zip(jax.tree.leaves(params), specs, strict=True):
        cut = [name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ())]
        copies = mesh.num_devices
        for name in cut:
            copies //= axes[name]
        expected += copies * nbytes(leaf)
    assert mesh.num_devices * row_bytes(plan(micro(), mesh), *PARTS) == expected


@pytest.mark.slow
def test_bfloat16_halves_the_weights():
    whole, half = (plan(tiny(), MeshConfig(), weights_dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert row_bytes(half, "transformer", "text_encoder") < 0.52 * row_bytes(whole, "transformer", "text_encoder")
    assert row_bytes(half, "autoencoder", "depth") == row_bytes(whole, "autoencoder", "depth")


def test_more_devices_never_hold_more(planned):
    needed = [planned, *(plan(micro(), MeshConfig(fsdp=count)) for count in (2, 4))]
    for stages in zip(*(p.stages for p in needed), strict=True):
        held = [stage.held for stage in stages]
        assert held == sorted(held, reverse=True)


@pytest.mark.parametrize(
    "more",
    [{"opening_frames": 9}, *(pytest.param(m, marks=pytest.mark.slow) for m in ({"new_frames": 8}, {"references": 4}))],
    ids=str,
)
def test_more_frames_and_pixels_never_need_less(planned, more):
    config = dataclasses.replace(micro(), clip=dataclasses.replace(micro().clip, **more))
    for larger, smaller in zip(plan(config, MeshConfig()).stages, planned.stages, strict=True):
        assert larger.bytes >= smaller.bytes


def test_the_text_encoder_counts_only_while_texts_are_read(planned):
    text = row_bytes(planned, "text_encoder")
    assert planned.stages[0].held == text + 8 * (4 + 1)  # ids and mask of 8 tokens
    config = micro()
    larger = dataclasses.replace(config.text_encoder, vocab_size=100_000)
    other = plan(dataclasses.replace(config, text_encoder=larger), MeshConfig())
    assert [s.bytes for s in other.stages[1:]] == [s.bytes for s in planned.stages[1:]]


def test_fits_says_nothing_and_tables_name_everything(planned):
    require_fit(planned, device_memory())
    require_fit(planned, planned.peak.bytes)
    table = planned.table()
    for row in planned.rows:
        assert row.name in table
    for stage in planned.stages:
        assert stage.name in table


@pytest.mark.slow
def test_a_refusal_names_options_that_make_it_fit():
    config = micro()
    wide = dataclasses.replace(config.transformer, dim=768, num_heads=2, ffn_dim=3072)
    planned = plan(dataclasses.replace(config, transformer=wide), MeshConfig())
    limit = planned.peak.bytes // 3
    steps = ways_out(planned, limit)
    for before, (_, after) in zip([planned, *(p for _, p in steps)], steps, strict=False):
        assert after.peak.bytes < before.peak.bytes
    last = steps[-1][1]
    again = plan(
        last.setting.config, last.setting.mesh, weights_dtype=last.setting.weights_dtype, platform=last.setting.platform
    )
    require_fit(again, limit)
    with pytest.raises(InputError) as refused:
        require_fit(planned, limit)
    message = str(refused.value)
    assert "\n" not in message
    assert "which fits" in message
    assert all(option in message for option, _ in steps)
    assert "--weights-dtype bfloat16" in message


@pytest.mark.slow
def test_a_refusal_without_a_way_out(planned):
    with pytest.raises(InputError, match="still too much|No option"):
        require_fit(planned, 1000)


def test_sample_says_and_refuses_before_it_loads(monkeypatch, capsys):
    large = dataclasses.replace(micro().transformer, dim=2048, num_heads=16, ffn_dim=8192, num_layers=6)
    model = Model(dataclasses.replace(micro(), transformer=large))
    args = command.SampleArgs(experiment=model.config)
    monkeypatch.setattr(command, "device_memory", lambda: 2**40)
    command._check_memory(args, model)
    assert "expected peak" in capsys.readouterr().out
    monkeypatch.setattr(command, "device_memory", lambda: 2**29)
    with pytest.raises(InputError, match="needs .* but there are 512.00 MiB"):
        command._check_memory(args, model)
    capsys.readouterr()
    command._check_memory(args, Model(micro()))
    assert not capsys.readouterr().out


def test_released_sizes():
    planned = plan(released(), MeshConfig(), weights_dtype="bfloat16", platform="gpu")
    assert "frame bank" in planned.table()
    assert row_bytes(planned, "transformer") == pytest.approx(2 * 6.40e9, rel=0.01)
    assert row_bytes(planned, "text_encoder") == pytest.approx(2 * 5.68e9, rel=0.01)
    assert len(planned.stages) == 10
    assert planned.stages[-1].name == "the video: decode"


@pytest.mark.slow
def test_xla_says_about_the_same_of_the_released_denoising_step():
    """In float32: of bfloat16 weights XLA makes float32 copies on a CPU, which no accelerator does."""
    wide = dataclasses.replace(released(), transformer=dataclasses.replace(released().transformer, dtype="float32"))
    planned = plan(wide, MeshConfig(), platform="cpu")
    step = next(stage for stage in planned.stages if stage.name == "opening clip: denoise")
    assert 0.5 < step.made.bytes / compile_step(wide, MeshConfig(), "float32") < 1.3
