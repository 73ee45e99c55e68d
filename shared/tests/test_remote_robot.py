"""The robot behind a socket, seen from the bridge."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sim2or.errors import HardwareError
from sim2or.worlds.remote_robot import RemoteRobot


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_robot_that_does_not_answer_leaves_no_socket_open(
    tmp_path_factory: pytest.TempPathFactory, eventually
) -> None:
    """Ten attempts to connect cost no file descriptor; the error says what to look at."""
    endpoint = f"ipc://{tmp_path_factory.mktemp('r')}/r"
    arm = RemoteRobot(endpoint)
    with pytest.raises(HardwareError, match="is the robot process running"):
        arm.connect(timeout_s=0.01)
    before = open_files()
    for _ in range(10):
        with pytest.raises(HardwareError):
            RemoteRobot(endpoint).connect(timeout_s=0.01)
    eventually(lambda: open_files() <= before + 2)


def test_a_robot_that_was_never_connected_can_be_closed(tmp_path: Path) -> None:
    """Whoever cleans up does not have to know how far it came."""
    RemoteRobot(f"ipc://{tmp_path}/r").close()
