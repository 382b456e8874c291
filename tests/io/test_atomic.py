"""Whatever interrupts a write, the old content or the new content is there, whole."""

import errno
import signal
import subprocess
import sys

import pytest

from spatia_jax.errors import InputError
from spatia_jax.io import atomic, atomic_directory, atomic_write, recover_directory, require_free_space

# Dies by SIGKILL at the n-th call of the system that atomic.py makes, counted over all of them.
_KILLED_WRITER = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[4])  # without the slow imports of its package
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
path, kind, n, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), 0

def deadly(function):
    def call(*arguments):
        global calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

for name in ("rename", "replace", "fsync"):
    setattr(os, name, deadly(getattr(os, name)))
atomic.shutil.rmtree = deadly(atomic.shutil.rmtree)
if kind == "file":
    with atomic.atomic_write(path) as temporary:
        temporary.write_text("new")
else:
    with atomic.atomic_directory(path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("new")
"""


def _kill_at_every_call(path, kind, check):
    for n in range(1, 50):
        arguments = [sys.executable, "-c", _KILLED_WRITER, str(path), kind, str(n), atomic.__file__]
        status = subprocess.run(arguments, check=False).returncode
        assert status in (0, -signal.SIGKILL)
        check()
        if status == 0:
            return n
    raise AssertionError("the writer never finished")


def test_file_survives_kill_at_any_call(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("old")
    seen = []
    assert _kill_at_every_call(path, "file", lambda: seen.append(path.read_text())) >= 3
    assert set(seen) == {"old", "new"}
    assert seen[-1] == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["value.txt"]


def test_directory_survives_kill_at_any_call(tmp_path):
    path = tmp_path / "world"
    seen = []

    def check():
        recover_directory(path)
        content = {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}
        assert content in ({"a": "old", "c": "old"}, {"a": "new", "sub/b": "new"})
        assert [entry.name for entry in tmp_path.iterdir()] == ["world"]
        seen.append(content["a"])
        if seen[-1] == "new":  # start the next death from the old content again
            with atomic_directory(path) as folder:
                (folder / "a").write_text("old")
                (folder / "c").write_text("old")

    with atomic_directory(path) as folder:
        (folder / "a").write_text("old")
        (folder / "c").write_text("old")
    assert _kill_at_every_call(path, "directory", check) >= 7
    assert set(seen) == {"old", "new"}


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(errno.ENOSPC, "No space left on device")])
def test_error_inside_keeps_the_old(tmp_path, error):
    file, folder = tmp_path / "a.txt", tmp_path / "b"
    file.write_text("old")
    with atomic_directory(folder) as new:
        (new / "x").write_text("old")

    wanted = InputError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(wanted), atomic_write(file) as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(wanted), atomic_directory(folder) as new:
        (new / "x").write_text("half")
        raise error

    assert file.read_text() == "old"
    assert (folder / "x").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "b"]


def test_disk_full_is_one_line_with_bytes(tmp_path):
    with pytest.raises(InputError, match=r"the disk is full: more than [\d,]+ bytes needed, [\d,]+ free") as raised:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="4,611,686,018,427,387,904 bytes needed"):
        require_free_space(tmp_path / "not" / "yet" / "there", 2**62)
    require_free_space(tmp_path, 1)


def test_other_os_errors_are_not_renamed(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "no")
