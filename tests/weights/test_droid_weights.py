"""`droid.pth`: the official layout in and out, and one clear line for whatever is not it."""

from __future__ import annotations

import os
import pickle

import jax
import numpy as np
import pytest
from weights.torch_zip import write_archive, write_pth

from spatia_jax.errors import InputError
from spatia_jax.models.droid import DroidConfig
from spatia_jax.weights import droid
from spatia_jax.weights.pickles import read_pickle

SMALL = DroidConfig(widths=(8, 8, 16), feature_dim=16, hidden_dim=16, motion_dim=8, num_levels=3, radius=2)


@pytest.fixture
def released():
    """Random tensors as they are released: with prefix, and with a third row in the heads."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in droid.official_shapes(SMALL).items():
        rows = 3 if name.startswith(("update.delta.2.", "update.weight.2.")) else shape[0]
        tensors[f"module.{name}"] = rng.normal(size=(rows, *shape[1:])).astype(np.float32)
    return tensors


def test_released_size():
    shapes = droid.official_shapes(DroidConfig())
    assert len(shapes) == 102
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_002_565
    parts = {part: sum(int(np.prod(s)) for n, s in shapes.items() if n.startswith(part)) for part in ("fnet", "cnet")}
    assert parts == {"fnet": 714_560, "cnet": 731_072}


def test_round_trip_through_a_torch_file(tmp_path, released):
    write_pth(tmp_path / "droid.pth", released)
    params = droid.read_droid(tmp_path / "droid.pth", SMALL)
    back = droid.to_official(SMALL, params)
    assert back.keys() == released.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, released[name][: len(tensor)])
    assert back["module.update.delta.2.weight"].shape[0] == 2
    network = droid.build(SMALL, params)
    kernel = network.update.gru.convz.kernel[...]
    np.testing.assert_array_equal(kernel[2, 1, 7, 3], released["module.update.gru.convz.weight"][3, 7, 2, 1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("module.fnet.layer2.0.downsample.0.bias"), "1 tensors of DROID-SLAM are missing"),
        (lambda t: t.update({"module.fnet.extra": np.ones(1, np.float32)}), "not of DROID-SLAM, first 'fnet.extra'"),
        (lambda t: t.update({"module.cnet.conv2.bias": np.ones(3, np.float32)}), r"cnet.conv2.bias has shape \(3,\)"),
        (lambda t: t.update({"module.update.delta.2.bias": np.ones(1, np.float32)}), "update.delta.2.bias has shape"),
        (lambda t: t.clear() or t.update({"a.weight": np.ones(2, np.float32)}), "not the weights of DROID-SLAM"),
        (
            lambda t: t.clear() or t.update({"backbone.embeddings.cls_token": np.ones(2, np.float32)}),
            "holds the depth, not the weights of DROID-SLAM",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, released, change, message):
    change(released)
    write_pth(tmp_path / "droid.pth", released)
    with pytest.raises(InputError, match=message) as error:
        droid.read_droid(tmp_path / "droid.pth", SMALL)
    assert "\n" not in str(error.value)
    assert "droid.pth" in str(error.value)


def test_absent_and_cut_short(tmp_path, released):
    with pytest.raises(InputError, match="no such checkpoint"):
        droid.read_droid(tmp_path / "droid.pth", SMALL)
    write_pth(tmp_path / "droid.pth", released)
    whole = (tmp_path / "droid.pth").read_bytes()
    (tmp_path / "droid.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short or damaged"):
        droid.read_droid(tmp_path / "droid.pth", SMALL)


def test_a_file_that_runs_code_is_refused(tmp_path):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    write_archive(tmp_path / "droid.pth", pickle.dumps({"module.fnet.conv1.weight": Evil()}, protocol=2)[2:-1])
    with pytest.raises(InputError, match="refused"):
        droid.read_droid(tmp_path / "droid.pth", SMALL)
    assert not trace.exists()


def test_released_file_round_trip_golden(golden_dir):
    tensors = read_pickle(golden_dir / "droid_random.pth")
    back = droid.to_official(DroidConfig(), droid.read_droid(golden_dir / "droid_random.pth", DroidConfig()))
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[name][: len(tensor)])
