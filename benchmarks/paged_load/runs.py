"""Runs of engines at each size: the variants of Greenroom, and the peers."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.comparison.bandwidth import disk_bytes_per_second
from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.engine_process import EngineError, LaunchSpec, Measurement, Peer, Workload
from benchmarks.comparison.engines import SCRIPTS, Variant
from benchmarks.comparison.gguf_files import SCRIPTS_FOLDER
from benchmarks.comparison.weights import GGUF_EXPERT, gguf_sizes
from benchmarks.memory_use.server import GroupedServer, ServerError
from benchmarks.paged_load.measures import SHORT_PROMPT, Experts, Measures, make_prompts
from benchmarks.paged_load.reads import Reads, ReadSampler
from expert_store import FileName
from expert_store.store import NUM_READERS
from server.model.checkpoint.gguf.gguf_file import GgufFile

DISK_BLOCK, DISK_SECONDS = 1 << 20, 0.5
FTLLM_CACHE_SHARE = 0.4  # of the limit, for experts; the rest is for its other memory
PEER_SECONDS = 60.0  # of decoding, at most
ENDED = (OSError, RuntimeError, TimeoutError, httpx.HTTPError, psutil.NoSuchProcess)
MARGIN = 512  # tokens of a context beside those of the longest prompt
PEERS = {"llama.cpp": "llama_cpp", "ftllm": "ftllm"}  # and their modules, after which options are named
Measure = Callable[[int | None, int, dict[str, Any]], None]  # of a limit and a round, into an entry


@dataclass(frozen=True)
class Model:
    """The file that is measured."""

    file: Path
    vocabulary: int
    experts: Experts

    @classmethod
    def read(cls, file: Path) -> Model:
        """Read the sizes in a GGUF file's header."""
        header = GgufFile.open(file.parent, FileName(file.name))
        nbytes = {name: size for name, size in gguf_sizes(file).items() if GGUF_EXPERT.search(name)}
        layers = len({name.split(".")[1] for name in nbytes})
        vocabulary = len(header.metadata["tokenizer.ggml.tokens"])
        return cls(file, vocabulary, Experts(layers * header.integer("expert_count"), sum(nbytes.values())))


class Runs:
    """Runs engines at each size, and collects what was measured."""

    def __init__(self, model: Model, options: argparse.Namespace):
        self._model, self._options = model, options
        self._context = max(*options.prompts, *options.beside, SHORT_PROMPT) + max(options.tokens, MARGIN)
        self.entries: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def run(self) -> None:
        """Measure all engines at all sizes in all rounds; an interrupt ends it, and keeps what was measured."""
        engines: dict[str, Measure] = {
            variant.name: partial(self._greenroom, variant) for variant in self._options.variant
        }
        for name, flag in PEERS.items():
            python, option = getattr(self._options, flag), f"--{flag.replace('_', '-')}"
            if not python:
                self._skip(f"{name}: no environment is given; set {option} PYTHON")
            elif not _has_module(python, flag):
                self._skip(f"{name}: {python} finds no module {flag}; give {option} an interpreter that does")
            else:
                engines[name] = partial(self._peer, name, python)
        try:
            for number in range(self._options.rounds):
                turned = list(engines)[:: -1 if number % 2 else 1]
                for size in self._options.sizes:
                    for name in turned:
                        self._add(name, size, number, engines[name])
        except KeyboardInterrupt:
            self._skip("all further measurements: the run was stopped")

    def _add(self, name: str, size: str, number: int, measure: Measure) -> None:
        print(f"{size}, round {number}: {name}", file=sys.stderr, flush=True)
        limit = None if size == "all" else int(self._model.file.stat().st_size * Fraction(size))
        entry: dict[str, Any] = {"size": size, "limit_bytes": limit, "engine": name, "round": number, "is_whole": False}
        entry |= {"ready_seconds": [], "prompts": [], "beside": [], "decoding": []}
        try:
            measure(limit, number, entry)
            entry["is_whole"] = True
        except (ControlGroupError, EngineError, ServerError, *ENDED) as error:
            self._skip(f"{size}, {name}: {str(error) or type(error).__name__}")
        finally:
            if entry["ready_seconds"]:
                self.entries.append(entry)

    def _greenroom(self, variant: Variant, limit: int | None, number: int, found: dict[str, Any]) -> None:
        options = self._options
        groups = [[tokens] for tokens in options.prompts] if options.restart else [options.prompts]
        for last, prompts in ((group is groups[-1], group) for group in groups):
            started = time.perf_counter()
            with self._server(variant, limit) as server:
                found["ready_seconds"].append(time.perf_counter() - started)
                measures = Measures(
                    server, self._model.experts, self._model.vocabulary, disk_rate=self._disk_rate, seed=number
                )
                try:
                    found["prompts"].extend(measures.prompt(tokens) for tokens in prompts)
                    if last:
                        found["beside"].extend(measures.beside(tokens, self._context) for tokens in options.beside)
                        found["decoding"].extend(measures.decoding(count, options.tokens) for count in options.streams)
                except ENDED as error:
                    cause = "the kernel killed it" if server.was_killed else str(error) or type(error).__name__
                    raise ServerError(f"{cause}; its log ends with: {server.last_log_line()}") from error
                found["peak_bytes"] = server.peak_bytes()

    def _disk_rate(self) -> float:
        return disk_bytes_per_second([self._model.file], DISK_BLOCK, DISK_SECONDS, depths=[NUM_READERS])

    def _server(self, variant: Variant, limit: int | None) -> GroupedServer:
        flags = ["--threads", str(self._options.threads), "--max-model-len", str(self._context), *variant.flags]
        return GroupedServer(self._model.file, limit, flags, self._options.logs / f"{variant.name}.log", variant.folder)

    def _peer(self, name: str, python: str, limit: int | None, number: int, found: dict[str, Any]) -> None:
        options = self._options
        command = [python, str(SCRIPTS_FOLDER / SCRIPTS[name]), str(self._model.file)]
        command += ["--threads", str(options.threads), "--sampled"]
        if name == "llama.cpp":
            command.append("--no-repack")
        else:
            together = max(options.streams) * (SHORT_PROMPT + options.tokens)
            command += ["--max-model-len", str(max(self._context, together))]
            command += [] if limit is None else ["--cache", f"{int(FTLLM_CACHE_SHARE * limit) >> 20}m"]
        start = LaunchSpec(command, self._model.file, limit, environment={"OMP_NUM_THREADS": str(options.threads)})

        def measured(use: str, streams: int, tokens: int, new_tokens: int) -> tuple[Measurement, Reads, int]:
            """Return a measurement, what was read in it, and the bytes of that after the first tokens."""
            prompts = make_prompts(use, streams, tokens, seed=number, vocabulary=self._model.vocabulary)
            with ReadSampler(peer.process) as sampler:
                found = peer.measure(Workload(prompts, new_tokens, PEER_SECONDS))
                return found, sampler.reads(), sampler.bytes_since(time.perf_counter() - found.seconds)

        with Peer(start, options.logs / f"{name}.log") as peer:
            found["ready_seconds"].append(peer.load_seconds)
            for tokens in options.prompts:
                disk = self._disk_rate()
                each, reads, _ = measured("prompt", 1, tokens, 1)
                found["prompts"].append(
                    {
                        "tokens": tokens,
                        "first_token_seconds": each.first_token_seconds,
                        "bytes_read": reads.nbytes,
                        "disk_share": reads.disk_share(disk),
                        "disk_bytes_per_second": disk,
                        "cores": reads.cores,
                    }
                )
            for streams in options.streams:
                each, _, nbytes = measured("decoding", streams, SHORT_PROMPT, options.tokens)
                rate, read = (each.tokens_per_second, nbytes / each.tokens) if each.tokens else (None, None)
                found["decoding"].append({"streams": streams, "tokens_per_second": rate, "bytes_read_per_token": read})
            found["peak_bytes"] = peer.group_peak_bytes()

    def _skip(self, line: str) -> None:
        self.skipped.append(line)
        print(f"skipped: {line}", file=sys.stderr, flush=True)


def _has_module(python: str, module: str) -> bool:
    """Return whether an interpreter exists and finds a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", code], check=False, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return False
    return not found.returncode
