"""Benchmark of structured output: ``python -m benchmarks.grammar``.

Prints milliseconds to compile each grammar, and mean and maximum microseconds to compute a token mask on a random walk
through it. Then it prints sampling steps per second of CPU time with and without a grammar. The vocabulary has 151,936
tokens: single bytes, and the words of the standard library's sources with all their prefixes. Logits are Gaussian, so
strings end at random and all kinds of masks occur. Run it with OMP_NUM_THREADS=1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.engine.interface import GrammarSpec, SamplingParams
from server.engine.sampling.grammar import CompiledGrammar, GrammarCompiler
from server.engine.sampling.sampler import sample
from server.engine.sampling.sampling_state import SamplingState

VOCABULARY = 151_936
END = 256
ROWS = (1, 8)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "parent": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json_object": GrammarSpec("json_object"),
    "person": GrammarSpec("json_schema", json.dumps(PERSON)),
    "enum": GrammarSpec("json_schema", json.dumps({"enum": [f"choice {number}" for number in range(1000)]})),
    "pattern": GrammarSpec("json_schema", json.dumps({"type": "string", "pattern": r"^(\w+ ){1,50}\d{3,5}$"})),
}


def words() -> Iterator[bytes]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for word in re.findall(rb" ?\w+| ?[^\w\s]+|\s+", path.read_bytes()):
            yield from (word[:length] for length in range(2, min(len(word), 12) + 1))


def vocabulary() -> list[bytes]:
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), b"<end>"])
    for word in words():
        tokens[word] = None
        if len(tokens) == VOCABULARY:
            break
    return [*tokens, *[b""] * (VOCABULARY - len(tokens))]


def walk(grammar: CompiledGrammar, steps: int) -> list[float]:
    """Return the seconds of each mask on a random walk through a grammar, restarted when complete."""
    random, matcher, seconds = np.random.default_rng(0), grammar.matcher(), []
    for _ in range(steps):
        start = time.thread_time()
        allowed = matcher.allowed()
        seconds.append(time.thread_time() - start)
        matcher.accept(int(random.choice(np.flatnonzero(allowed))))
        if matcher.is_complete:
            matcher = grammar.matcher()
    return seconds


def steps_per_second(grammar: CompiledGrammar | None, rows: int, steps: int) -> float:
    """Return sampling steps per second, from the median step."""
    generator = torch.Generator().manual_seed(0)
    original = torch.randn((rows, VOCABULARY), generator=generator) * 3

    def new_state(row: int) -> SamplingState:
        return SamplingState(SamplingParams(1, grammar=grammar), row, [0], 1)

    states, seconds = [new_state(row) for row in range(rows)], []
    for _ in range(steps):
        logits = original.clone()
        start = time.thread_time()
        tokens = sample(logits, states, frozenset({END}))
        for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
            state.token_ids.append(token or 0)
            if state.matcher is not None:
                state.matcher.accept(token or 0)
                if state.matcher.is_complete:
                    states[row] = new_state(row)
        seconds.append(time.thread_time() - start)
    return 1 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    start = time.thread_time()
    compiler = GrammarCompiler(vocabulary(), frozenset({END}), frozenset({END}))
    result: dict[str, Any] = {"benchmark": "grammar", "tokens_seconds": round(time.thread_time() - start, 2)}
    compiled = {}
    for name, spec in GRAMMARS.items():
        start = time.thread_time()
        compiled[name] = compiler.compile(spec)
        compile_ms = (time.thread_time() - start) * 1e3
        seconds = walk(compiled[name], options.steps)
        mean_us, worst_us = (round(value * 1e6) for value in (statistics.mean(seconds), max(seconds)))
        result[name] = {"compile_ms": round(compile_ms, 1), "mask_mean_us": mean_us, "mask_worst_us": worst_us}
        print(name, result[name], flush=True)
    for rows in ROWS:
        choices = {"none": None, **compiled}
        figures = {name: round(steps_per_second(grammar, rows, options.steps)) for name, grammar in choices.items()}
        result[f"steps_a_second_rows_{rows}"] = figures
        print(f"{rows} rows:", figures, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
