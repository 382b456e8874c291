"""What the environment says of other processes; the processes themselves are in tests/training/test_resume.py."""

import pytest

from spatia_jax.errors import InputError
from spatia_jax.parallel.distributed import launch_arguments

PLAIN = {"COORDINATOR_ADDRESS": "host0:8476", "NUM_PROCESSES": "4", "PROCESS_ID": "1"}


def test_what_is_set_by_hand():
    expected = {"coordinator_address": "host0:8476", "num_processes": 4, "process_id": 1}
    assert launch_arguments(PLAIN) == expected


def test_a_machine_by_itself():
    assert launch_arguments({}) is None
    assert launch_arguments({"SLURM_NTASKS": "4"}) is None  # a batch script, which srun did not start


def test_slurm_numbers_the_processes_itself():
    assert launch_arguments({"SLURM_STEP_NUM_TASKS": "4"}) == {"cluster_detection_method": "slurm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PROCESS_ID": ""}, "COORDINATOR_ADDRESS, NUM_PROCESSES is set, but not PROCESS_ID"),
        ({"PROCESS_ID": "4"}, "PROCESS_ID is 4; it must lie between 0 and 3"),
        ({"NUM_PROCESSES": "four"}, "NUM_PROCESSES is 'four'; it must be a whole number"),
        ({"COORDINATOR_ADDRESS": "host0"}, "COORDINATOR_ADDRESS is 'host0'; it must be host:port"),
    ],
)
def test_what_cannot_be_is_one_line(changes, message):
    with pytest.raises(InputError) as raised:
        launch_arguments(PLAIN | changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
