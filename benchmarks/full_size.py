r"""Benchmark of models that are larger than their memory, at full size: prompts, decoding, and both beside each other.

    python -m benchmarks.full_size qwen3-30b-a3b --work DIR --llama-cpp PYTHON
    python -m benchmarks.full_size gpt-oss-20b --work DIR --sizes 2/5 --prompts 4096 \
        --variant "chunks . --prefill chunks" --variant "layers . --prefill layers"
    python -m benchmarks.full_size qwen3-30b-a3b --layers 8 --work DIR --sizes all
    python -m benchmarks.full_size tiny --work DIR

The GGUF file of a shape is made in ``--work``, with random weights in the types of the published file, unless it is
there; it stays. ``--heat`` is the standard deviation of the logarithm of router rows' lengths, so that some experts are
chosen more often than others; ``trace`` takes the shares from the routing logs of the bundled model. A path of a GGUF
file instead of a shape measures that file.

For each size, in each round, every variant of Greenroom and every peer runs alone in a new memory control group of a
part of the file (requires root; page cache counts, and is empty at first), in an order that turns from round to round.
``all`` has no limit. A variant is ``NAME CHECKOUT FLAG ...``. Prompts are random tokens, and each is new. Of a prompt:

- time to the first token, bytes that the process read from the disk, and what ``usage.greenroom`` reports;
- ``read_over_missing``: those bytes over the experts that were not in memory when it came;
- ``disk_share``: the rate from the first to the last byte read, over the rate of direct reads of 1 MiB by as many
  threads as the store has, measured just before;
- ``cores``: processor seconds a second, which shows where compute bounds.

``beside`` is the time between tokens of another stream before and while a prompt is read. ``share_of_disk_limit`` of
decoding is the time that the disk takes for the experts that the steps missed, over the time they took. Experts in
memory are those that earlier prompts left there; ``--restart`` starts a server anew before each prompt. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from benchmarks.comparison.engines import Variant
from benchmarks.comparison.machine import describe_machine
from benchmarks.made_gguf.heat import lognormal, of_traces
from benchmarks.made_gguf.shapes import SHAPES
from benchmarks.made_gguf.write import WriteError, write_gguf
from benchmarks.paged_load.report import make_table, medians
from benchmarks.paged_load.runs import PEERS, Model, Runs
from expert_store import CheckpointError, RoutingLogError
from server.model.errors import ModelError

SIZES, PROMPTS = ["1/4", "2/5", "3/5"], [64, 512, 4096, 16_000]
TINY_SHAPE = "tiny"
TINY = {"sizes": ["all"], "prompts": [16, 64], "beside": [64], "streams": [1, 2], "tokens": 64}


def main() -> None:
    """Run the benchmark."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server, and print the results so far
    options = parse(sys.argv[1:])
    options.logs.mkdir(parents=True, exist_ok=True)
    try:
        model = Model.read(model_file(options))
    except (WriteError, RoutingLogError, CheckpointError, ModelError) as error:
        sys.exit(f"full_size: {error}")
    runs = Runs(model, options)
    runs.run()
    rows = medians(runs.entries)
    Console(width=None if sys.stdout.isatty() else 170, highlight=False).print(make_table(rows))
    result = {
        "benchmark": "full_size",
        "file": model.file.name,
        "bytes": model.file.stat().st_size,
        "experts": asdict(model.experts),
        "heat": options.heat,
        "machine": describe_machine(),
        "variants": {variant.name: list(variant.flags) for variant in options.variant},
        "entries": runs.entries,
        "medians": rows,
        "skipped": runs.skipped,
    }
    print(json.dumps(result))
    whole = [entry["engine"] for entry in runs.entries if entry["is_whole"]]
    num_wanted = options.rounds * len(options.sizes)
    sys.exit(0 if all(whole.count(variant.name) == num_wanted for variant in options.variant) else 1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a shape ({', '.join(SHAPES)}), or the path of a GGUF file")
    parser.add_argument("--work", type=Path, default=Path(), help="folder of the files of shapes (default: this one)")
    parser.add_argument("--layers", type=int, help="of the shape, to make a smaller file")
    parser.add_argument("--heat", default="0.35", help="deviation of the logarithm of row lengths, or trace")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="parts of the file, or all (default: 1/4,2/5,3/5)")
    parser.add_argument("--prompts", type=_numbers, default=PROMPTS, help="lengths in tokens")
    parser.add_argument("--beside", type=_numbers, default=[4096], help="lengths of prompts beside a stream, or 0")
    parser.add_argument("--streams", type=_numbers, default=[1, 4, 8], help="that decode together")
    parser.add_argument("--tokens", type=int, default=64, help="that each of them decodes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--restart", action="store_true", help="start a server anew before each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--variant",
        type=Variant.parse,
        action="append",
        metavar="'NAME CHECKOUT FLAG ...'",
        help="of Greenroom; repeatable (default: 'greenroom .')",
    )
    for name, flag in PEERS.items():
        parser.add_argument(f"--{flag.replace('_', '-')}", metavar="PYTHON", help=f"environment of {name}")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "greenroom-full-size")
    if TINY_SHAPE in arguments:
        parser.set_defaults(**TINY)
    options = parser.parse_args(arguments)
    options.variant = options.variant or [Variant("greenroom", Path.cwd())]
    options.beside = [tokens for tokens in options.beside if tokens]
    return options


def model_file(options: argparse.Namespace) -> Path:
    """Return the file to measure; make that of a shape, unless it is there.

    Raises:
        WriteError, RoutingLogError: If it can't be made.
    """
    shape = SHAPES.get(options.model)
    if shape is None:
        path = Path(options.model).resolve()
        if not path.is_file():
            raise WriteError(f"{options.model} is no file and no shape; shapes are {', '.join(SHAPES)}")
        return path
    if options.layers is not None:
        if options.layers <= shape.num_dense_layers:
            raise WriteError(f"--layers {options.layers} leaves no layer with experts; give more")
        shape = replace(shape, num_layers=options.layers)
    layers = "" if options.layers is None else f"-{options.layers}-layers"
    path = options.work.resolve() / f"{options.model}{layers}-heat-{options.heat}.gguf"
    if not path.exists():
        lengths = of_traces() if options.heat == "trace" else lognormal(_deviation(options.heat))
        print(f"making {path}, {shape.nbytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
        write_gguf(shape, path, lengths)
    return path


def _deviation(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise WriteError(f"--heat {text} is no number; give one such as 0.35, or trace") from error


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _sizes(text: str) -> list[str]:
    words = text.split(",")
    for word in words:
        if word != "all" and not _is_part(word):
            raise argparse.ArgumentTypeError(f"{word} is no part of the file; give one such as 2/5, or all")
    return words


def _is_part(word: str) -> bool:
    try:
        return Fraction(word) > 0
    except (ValueError, ZeroDivisionError):
        return False


if __name__ == "__main__":
    main()
