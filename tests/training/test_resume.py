"""A run that is killed, wherever, and started again has the numbers of one that was not: in processes of their own."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LINE = Path(__file__).with_name("line.py")
ROOT = Path(__file__).resolve().parents[2]


def start(*arguments, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, str(LINE), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in environment.items()}},
    )  # fmt: skip


def run(*arguments, status=0):
    """What a run says; it must end with `status`."""
    process = start(*arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == status, said
    return said


def numbers(directory):
    """Step, parameters, average and optimizer state at the end."""
    return dict(np.load(directory / "state.npz"))


def largest_difference(one, other):
    assert set(one) == set(other)
    return max(float(np.abs(one[name].astype(np.float64) - other[name]).max()) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    run(directory, 12)
    return numbers(directory)


@pytest.mark.parametrize("death", ["--die-at 6", "--die-saving 8"])
def test_killed_and_resumed_has_the_bits_of_an_uninterrupted_run(death, whole, tmp_path):
    """SIGKILL between two saves, and in the middle of one: its files are written, its folder has no name yet."""
    run(tmp_path, 12, *death.split(), status=-signal.SIGKILL)
    said = run(tmp_path, 12)
    assert "resuming from step 4" in said
    unfinished = list(tmp_path.glob("checkpoints/*tmp*"))
    assert not unfinished
    assert ("its writing was not finished" in said) == ("saving" in death)
    assert any("ema" in name for name in whole)
    assert any("mu" in name for name in whole)
    found = numbers(tmp_path)
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=4", "data=2 fsdp=2"])
def test_resumed_on_another_mesh_is_equal_to_rounding(mesh, whole, tmp_path):
    run(tmp_path, 12, "--die-at", 6, status=-signal.SIGKILL)
    assert "resuming from step 4" in run(tmp_path, 12, "--devices", 4, "--mesh", *mesh.split())
    assert largest_difference(whole, numbers(tmp_path)) < 2e-6


def together(count, directory, *, devices, arguments=lambda index: (), seconds=120, **environment):
    """Return codes and outputs of `count` processes of one job."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": count, **environment}
    processes = [
        start(directory, 12, "--devices", devices, *arguments(index), PROCESS_ID=index, **job) for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_two_processes_of_two_devices_are_equal_to_one(whole, tmp_path):
    codes, outputs = together(2, tmp_path, devices=2)
    assert codes == [0, 0], outputs
    assert "step 12/12" in outputs[0]
    assert "step" not in outputs[1]  # only process 0 says anything
    assert largest_difference(whole, numbers(tmp_path)) < 2e-6


@pytest.mark.slow
def test_resumed_by_two_processes_is_equal_to_rounding(whole, tmp_path):
    run(tmp_path, 12, "--die-at", 6, status=-signal.SIGKILL)
    codes, outputs = together(2, tmp_path, devices=1)
    assert codes == [0, 0], outputs
    assert "resuming from step 4" in outputs[0]
    assert largest_difference(whole, numbers(tmp_path)) < 2e-6


@pytest.mark.slow
def test_a_host_that_dies_ends_all_and_the_next_start_resumes(whole, tmp_path):
    def dies(index):
        return ("--die-reading", 11) if index else ("--slow", 0.5)

    codes, outputs = together(2, tmp_path, devices=1, arguments=dies, HEARTBEAT_SECONDS=5)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)
    assert "another task died" in outputs[0]
    codes, outputs = together(2, tmp_path, devices=1)
    assert codes == [0, 0], outputs
    assert "resuming from step 4" in outputs[0]
    assert largest_difference(whole, numbers(tmp_path)) < 2e-6


@pytest.mark.slow
def test_a_host_that_is_told_to_stop_stops_all_at_one_step_which_is_saved(whole, tmp_path):
    codes, outputs = together(
        2, tmp_path, devices=1, arguments=lambda index: ("--stop-reading", 5) if index else ("--slow", 0.5)
    )
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    saved = int(re.search(r"SIGTERM: saved step (\d+) in", outputs[0])[1])
    assert saved < 12
    codes, outputs = together(2, tmp_path, devices=1)
    assert codes == [0, 0], outputs
    assert f"resuming from step {saved}" in outputs[0]
    assert largest_difference(whole, numbers(tmp_path)) < 2e-6
