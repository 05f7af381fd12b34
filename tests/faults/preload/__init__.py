"""A library that processes preload to meet faults of their system; the C compiler that builds the kernels builds it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "faults.c"


class Faults:
    """Faults of one process, which tests switch on and off."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._library = folder / "faults.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("not installed: cc or gcc")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "FAULTS": str(self._folder)}

    def move_clock(self, seconds: int) -> None:
        """Let the time of day be wrong by some seconds."""
        new = self._folder / "clock.new"
        new.write_text(str(seconds))
        new.replace(self._folder / "clock")
