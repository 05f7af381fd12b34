"""Skips tests where the system lacks what they need, and says what that is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import server
from tests.e2e.processes import COMMAND

# Root then obeys the modes of files, as others do anyway.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def need(*tools: str) -> None:
    """Skip a test whose tools are missing."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


def need_mounts(*command: str) -> None:
    """Skip a test if a command that mounts something fails."""
    need(command[0], "mount")
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounts are not allowed here: {tried.stderr.strip()}")


def need_readable(wrapper: Sequence[str], *others: Path) -> None:
    """Skip a test if a command that drops rights can't run the server's command from where it is installed."""
    need(*wrapper[:1])
    if not wrapper:
        return
    for path in (Path(server.__file__), Path(COMMAND), Path(COMMAND).with_name("python"), *others):
        if subprocess.run([*wrapper, "test", "-r", path], check=False).returncode:
            pytest.skip(f"{path} can't be read by {' '.join(wrapper)}")
