"""Files of one family's comparison: its random checkpoint, packs and GGUF files, deleted at the end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

from benchmarks.comparison.engine_process import EngineError
from benchmarks.comparison.plan import GGUF_FORMATS, PACKED_FORMATS


class FamilyFiles:
    """Context manager of ``WORK/FAMILY`` and all ``WORK/FAMILY-...``, which it deletes unless ``keep``."""

    def __init__(self, family: str, work: Path, python: str, *, keep: bool):
        self.folder = work / family
        self._python, self._keep = python, keep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            self.delete_quantised()
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in self._made("*.gguf"):
                path.unlink()

    def write_checkpoint(self) -> None:
        """Write the checkpoint in a process of its own, unless there is one.

        Raises:
            EngineError: If it can't be written.
        """
        print(f"writing {self.folder}", flush=True)
        command = [self._python, "-m", "benchmarks.family_checkpoints", self.folder.name, str(self.folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise EngineError(f"{self.folder} was not written: {done.stderr.strip().rpartition(chr(10))[2]}")

    def delete_quantised(self) -> None:
        """Delete what was made from the checkpoint or its first GGUF file, to need less space at a time."""
        if self._keep:
            return
        for weights in GGUF_FORMATS:
            for path in self._made(f"{weights}.gguf"):
                path.unlink()
        for weights in PACKED_FORMATS:
            shutil.rmtree(self.folder.with_name(f"{self.folder.name}-{weights}"), ignore_errors=True)

    def _made(self, pattern: str) -> list[Path]:
        return list(self.folder.parent.glob(f"{self.folder.name}-{pattern}"))
