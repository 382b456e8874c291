"""`.pth` files without torch: every tensor as stored, and nothing but tensors."""

from __future__ import annotations

import os
import pickle

import ml_dtypes
import numpy as np
import pytest
from weights.torch_zip import write_archive, write_pth

from spatia_jax.errors import InputError
from spatia_jax.weights.pickles import read_pickle


@pytest.fixture
def tensors(rng):
    return {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "half": rng.normal(size=4).astype(np.float16),
        "brain": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "counts": np.arange(7),
        "transposed": rng.normal(size=(4, 3, 2)).astype(np.float32).transpose(2, 0, 1),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_tensors_come_back_as_they_were(tmp_path, tensors):
    write_pth(tmp_path / "a.pth", tensors)
    read = read_pickle(tmp_path / "a.pth")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)
    assert read["transposed"].strides == tensors["transposed"].strides
    assert not read["matrix"].flags.owndata  # a view of the file
    with pytest.raises(ValueError, match="read-only"):
        read["matrix"][0] = 0


def test_a_real_torch_file_golden(golden_dir):
    tensors = read_pickle(golden_dir / "droid_random.pth")
    assert sum(tensor.size for tensor in tensors.values()) > 4_000_000
    assert all(name.startswith("module.") and np.isfinite(t).all() for name, t in tensors.items())


class Evil:
    """Would leave a file behind if its pickle were obeyed."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol):
    trace = tmp_path / "trace"
    body = pickle.dumps({"weight": Evil(trace)}, protocol=protocol)[:-1]
    write_archive(tmp_path / "a.pth", body[2:] if protocol else body)
    with pytest.raises(InputError, match=r"refused: its pickle asks for (posix|nt)\.mkdir") as error:
        read_pickle(tmp_path / "a.pth")
    assert "\n" not in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__class__"),
        ("collections", "OrderedDict.fromkeys"),
        ("spatia_jax.weights.pickles", "np"),
        ("functools", "partial"),
    ],
)
def test_only_the_names_of_tensors_are_granted(tmp_path, module, name):
    write_archive(tmp_path / "a.pth", pickle.GLOBAL + f"{module}\n{name}\n".encode())
    with pytest.raises(InputError, match=f"{module}.{name}"):
        read_pickle(tmp_path / "a.pth")


def test_a_pickle_cannot_alter_what_it_is_granted(tmp_path):
    granted = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
    state = pickle.NONE + pickle.EMPTY_DICT + pickle.MARK + b"U\x08__call__" + pickle.NONE + pickle.SETITEMS
    write_archive(tmp_path / "a.pth", granted + state + pickle.TUPLE2 + pickle.BUILD)
    with pytest.raises(InputError, match="cannot be read"):
        read_pickle(tmp_path / "a.pth")


def test_a_tensor_cannot_reach_out_of_its_storage(tmp_path, tensors):
    write_pth(tmp_path / "a.pth", {"matrix": tensors["matrix"]})
    whole = (tmp_path / "a.pth").read_bytes()
    wide = whole.replace(b"(J\x03\x00\x00\x00J\x05\x00\x00\x00t", b"(J\x03\x00\x00\x00J\x06\x00\x00\x00t")
    assert wide != whole
    (tmp_path / "a.pth").write_bytes(wide)
    with pytest.raises(InputError):
        read_pickle(tmp_path / "a.pth")


def test_a_storage_of_another_size_than_the_tensor_says(tmp_path):
    write_pth(tmp_path / "a.pth", {"a": np.ones(8, np.float32)})
    write_archive(tmp_path / "b.pth", _body(tmp_path / "a.pth"), [b"\0" * 16])
    with pytest.raises(InputError, match="should have 32 bytes"):
        read_pickle(tmp_path / "b.pth")


@pytest.mark.parametrize("kept", [10, 0.3, 0.9])
def test_a_file_cut_short_is_one_line(tmp_path, tensors, kept):
    write_pth(tmp_path / "a.pth", tensors)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(InputError, match="cut short or damaged") as error:
        read_pickle(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_the_old_format_is_named(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(InputError, match=r"before 1\.6"):
        read_pickle(tmp_path / "a.pth")


def test_newer_types_are_unsupported(tmp_path):
    write_archive(tmp_path / "a.pth", pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v3\n")
    with pytest.raises(InputError, match="fp8"):
        read_pickle(tmp_path / "a.pth")


def _body(path):
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{path.stem}/data.pkl")[2:-1]
