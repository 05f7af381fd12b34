"""Measurements of engines that are loaded together and run alternately."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.comparison.bandwidth import disk_bytes_per_second, memory_bytes_per_second
from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.engine_process import EngineError, EngineProcess, Measurement, Workload
from benchmarks.comparison.engines import MissingError, Setup, Variant
from benchmarks.comparison.machine import describe_machine
from benchmarks.comparison.plan import CONDITIONS, Engine, Selection, Task
from benchmarks.comparison.weights import CacheSizes, Weights, cache_sizes, weights_of

WARM_UP = (Task("prompt", 1, 512, 1), Task("decode", 8, 64, 8))  # loads all experts that fit in memory

QUIET_CORES = 0.1


class LoadedEngine:
    """A loaded engine, its weights, and its measurements so far."""

    def __init__(self, name: str, own_format: str, weights: Weights, process: EngineProcess, *, is_greenroom: bool):
        self.name, self.format, self.weights, self.is_greenroom = name, own_format, weights, is_greenroom
        self._process = process
        self.measurements: dict[Task, list[Measurement]] = {}

    @property
    def about(self) -> dict[str, Any]:
        return self._process.about

    def run(self, task: Task, prompts: list[list[int]], note: str = "") -> Measurement:
        result = self._process.measure(Workload(prompts, task.new_tokens))
        shown = f"first token after {result.first_token_seconds:.3f} s"
        if task.kind == "decode":
            shown = f"{result.tokens_per_second:.1f} tokens/s, {shown}"
        if result.others_cores > QUIET_CORES:
            note += f"; other processes used {result.others_cores:.1f} cores"
        print(f"  {self.name} {self.format}, {task.streams} x {task.prompt_tokens}: {shown}{note}", flush=True)
        return result

    def entries(self, condition: str, weights: str, cache: CacheSizes) -> Iterator[dict[str, Any]]:
        for task, results in self.measurements.items():
            cache_bytes = task.streams * cache.step_bytes(task.prompt_tokens + task.new_tokens // 2)
            yield {
                "condition": condition,
                "weights": weights,
                "engine": self.name,
                "format": self.format,
                "is_greenroom": self.is_greenroom,
                "kind": task.kind,
                "streams": task.streams,
                "prompt_tokens": task.prompt_tokens,
                "step_bytes": round(self.weights.step_bytes(task.streams)) + cache_bytes,
                "block_bytes": self.weights.expert_bytes,
                "peak_bytes": self._process.peak_bytes(),
                "group_peak_bytes": self._process.group_peak_bytes(),
                "load_seconds": self._process.load_seconds,
                "samples": [vars(result) for result in results],
            }


class Comparison:
    """A run of all selected measurements."""

    def __init__(self, setup: Setup, variants: Sequence[Variant], selection: Selection, retries: int):
        self._setup, self._variants, self._selection, self._retries = setup, variants, selection, retries
        self._config = json.loads((setup.model / "config.json").read_text())
        self._cache = cache_sizes(setup.greenroom, setup.model)
        self.entries: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.versions: dict[str, str] = {}
        self.memory: list[float] = []  # bytes per second
        self.disk: dict[str, list[float]] = {}  # bytes per second, by block bytes

    def run_group(self, condition: str, weights: str, work: Sequence[Task], rounds: int) -> None:
        """Load the engines of one condition and format together, and measure them alternately."""
        print(f"{condition}, {weights}", flush=True)
        with ExitStack() as stack:
            engines = list(self._start(condition, weights, stack))
            try:
                for task in WARM_UP if CONDITIONS[condition] is None else work:
                    self._measure_all(engines, condition, task, 0, " (warm-up)")
                for task in work:
                    if task.is_kept:
                        self._measure_all(engines, condition, replace(task, kind="prompt", new_tokens=1), 0, " (kept)")
                for index in range(1, rounds + 1):
                    for task in work:
                        self._measure_quietly(engines, condition, task, index)
                    self._measure_bandwidth(condition, {engine.weights.expert_bytes for engine in engines})
            finally:
                for engine in engines:
                    self.entries += engine.entries(condition, weights, self._cache)

    def _measure_quietly(self, engines: list[LoadedEngine], condition: str, task: Task, index: int) -> None:
        """Measure all engines at a task. Repeat while other processes are busy, and keep the quietest attempt."""
        best: dict[LoadedEngine, Measurement] = {}
        least = float("inf")
        for attempt in range(self._retries + 1):
            results = self._measure_all(engines, condition, task, index + 1000 * attempt)
            busiest = max((result.others_cores for result in results.values()), default=0)
            if busiest < least:
                best, least = results, busiest
            if least <= QUIET_CORES:
                break
        for engine, result in best.items():
            engine.measurements.setdefault(task, []).append(result)

    def _measure_all(
        self, engines: list[LoadedEngine], condition: str, task: Task, seed: int, note: str = ""
    ) -> dict[LoadedEngine, Measurement]:
        results = {}
        prompts = task.prompts(seed, self._config["vocab_size"])
        for engine in list(engines):
            try:
                results[engine] = engine.run(task, prompts, note)
            except EngineError as error:
                self._skip(condition, f"{engine.name} {engine.format}", error)
                engines.remove(engine)
        return results

    def _start(self, condition: str, weights: str, stack: ExitStack) -> Iterator[LoadedEngine]:
        chosen: list[Variant | Engine] = []
        if not self._selection.engines or "greenroom" in self._selection.engines:
            chosen += self._variants
        for engine in [*chosen, *self._selection.peers(condition, weights)]:
            own_format = engine.format if isinstance(engine, Engine) else weights
            try:
                process, path = self._setup.start(engine, weights, condition, CONDITIONS[condition])
            except (MissingError, EngineError, ControlGroupError) as error:
                self._skip(condition, f"{engine.name} {own_format}", error)
                continue
            stack.enter_context(process)
            self.versions.setdefault(engine.name, process.about["version"])
            size = weights_of(path, self._config)
            yield LoadedEngine(engine.name, own_format, size, process, is_greenroom=isinstance(engine, Variant))

    def _skip(self, condition: str, name: str, error: Exception) -> None:
        self.skipped.append(f"{condition}, {name}: {error}")
        print(f"  skipped: {self.skipped[-1]}", flush=True)

    def _measure_bandwidth(self, condition: str, blocks: set[int]) -> None:
        """Measure memory bandwidth, or direct reads of expert-sized blocks, while all engines are stopped."""
        if condition == "resident":
            self.memory.append(memory_bytes_per_second(self._setup.threads))
            return
        files = sorted(self._setup.model.glob("*.safetensors"))
        for block in sorted(blocks):
            self.disk.setdefault(str(block), []).append(disk_bytes_per_second(files, block))

    def result(self) -> dict[str, Any]:
        """Return all that was measured, and what it was measured on."""
        return {
            "benchmark": "compare",
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "model": self._setup.model.name,
            "threads": self._setup.threads,
            "machine": describe_machine(),
            "versions": self.versions,
            "bandwidth": {"memory": self.memory, "disk": self.disk},
            "entries": self.entries,
            "skipped": self.skipped,
        }
