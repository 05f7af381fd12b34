"""Faults of files, made in another process by a preloaded library."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
CHANGES, READS = 1, 2  # sides
KILL, FAIL, SHORTEN, STALL = 1, 2, 3, 4  # actions
ALL = -1

CONTROL = "FILE_FAULTS_CONTROL"


class _Control(ctypes.Structure):
    """``struct control`` of the library."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("side", "action", "skipped", "affected", "error", "millis", "num_calls")
    ]


class FileFaults:
    """Controls the calls of preloaded processes on files.

    Args:
        control: the file that is shared with them, named by ``FILE_FAULTS_CONTROL`` in their environment.
    """

    def __init__(self, control: Path):
        with control.open("r+b") as file:
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), 0))

    @property
    def num_calls(self) -> int:
        """Number of calls of the chosen side since it was chosen."""
        return int(self._control.num_calls)

    def set(
        self, side: int, action: int, *, skipped: int = 0, affected: int = ALL, error: int = 0, millis: int = 0
    ) -> None:
        """Let some calls of a side pass, then apply an action to the next."""
        self.clear()
        self._control.action, self._control.error, self._control.millis = action, error, millis
        self._control.skipped, self._control.affected, self._control.num_calls = skipped, affected, 0
        self._control.side = side

    def clear(self) -> None:
        self._control.side = 0


def preload(folder: Path, root: Path) -> tuple[FileFaults, dict[str, str]]:
    """Return the control over processes that run in an environment, and the environment's variables.

    Args:
        folder: for the library and the file that it shares with the test.
        root: the folder whose files are concerned.
    """
    if COMPILER is None:
        pytest.skip("calls of a process are hooked by a C library, and there is no C compiler")
    library, control = folder / "file_faults.so", folder / "control"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    control.write_bytes(bytes(ctypes.sizeof(_Control)))
    variables = {
        "LD_PRELOAD": str(library),
        "FILE_FAULTS_ROOT": str(root.resolve()),
        CONTROL: str(control),
    }
    return FileFaults(control), variables
