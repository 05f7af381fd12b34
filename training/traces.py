"""Records routing logs of the bundled model: ``python -m training.traces --corpus DIR``.

There is one log per domain, which decodes held-out text; in ``chat`` the model writes the answers; ``mixed`` has four
sequences of different domains in one batch. Cache policies were chosen on these logs with ``greenroom replay``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import torch

from expert_store import ExpertStore
from expert_store.routing_log.log import RoutingLogHeader, RoutingLogWriter
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME
from server.model.step import SequenceChunk
from server.model.text.tokenizer import Tokenizer
from server.model.trunk_loader import AnyTrunk, load_trunk
from training.corpus import find_domains, read_documents, split_documents
from training.errors import DemoError
from training.samples import first_turn

FOLDER = BUNDLED.parent / "traces"
DECODE_STEPS = 400  # per log
PROMPT_TOKENS = 32  # prompt length of a text; a chat has its own prompt
LONGEST = 232  # tokens of one sequence, so that a log covers several documents
CHARACTERS_A_TOKEN = 8  # an upper bound
BATCH = 4  # sequences of the mixed log
BLOCK_SIZE = 16
CHAT = "chat"
TEMPERATURE = 0.7
END_TOKENS = (0, 2)


class Stream:
    """A sequence whose continuation is given, or sampled from the model."""

    def __init__(self, prompt: Sequence[int], continuation: Sequence[int] | None, draw: torch.Generator):
        self._continuation = None if continuation is None else list(continuation)
        self._draw = draw
        self.new = list(prompt)
        self.num_cached = 0

    def advance(self, logits: torch.Tensor) -> bool:
        """Append the next token, sampled from logits ``(vocabulary,)`` if not given; False at the end."""
        self.num_cached += len(self.new)
        if self._continuation is None:
            token = int(torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=self._draw))
            has_ended = token in END_TOKENS
        else:
            has_ended = not self._continuation
            token = 0 if has_ended else self._continuation.pop(0)
        self.new = [token]
        return not has_ended and self.num_cached < LONGEST


def text_streams(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Stream]:
    draw = torch.Generator()
    for text in texts:
        tokens = tokenizer.encode(text[: LONGEST * CHARACTERS_A_TOKEN])[:LONGEST]
        cut = min(PROMPT_TOKENS, len(tokens) // 2)
        if cut:
            yield Stream(tokens[:cut], tokens[cut:], draw)


def chat_streams(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Stream]:
    draw = torch.Generator().manual_seed(1)
    for messages in filter(None, map(first_turn, texts)):
        tokens = tokenizer.encode_chat(messages)
        if len(tokens) < LONGEST // 2:
            yield Stream(tokens, None, draw)


def alternate(domains: Sequence[Iterator[Stream]]) -> Iterator[Stream]:
    """Yield one stream of each domain, then the next of each."""
    return chain.from_iterable(zip(*domains, strict=False))


def record(trunk: AnyTrunk, streams: Iterator[Stream], batch: int, path: Path) -> None:
    """Run ``batch`` streams at a time until ``DECODE_STEPS`` steps were decoding only."""
    blocks = -(-2 * LONGEST // BLOCK_SIZE)
    cache = KVCache(trunk.facts.kv_groups, [blocks * batch], BLOCK_SIZE)
    tables = [list(range(blocks * place, blocks * (place + 1))) for place in range(batch)]
    layers = {layer: len(entry.experts) for layer, entry in trunk.catalog.layers.items()}
    slot_bytes = {layer: entry.layout.slot_bytes for layer, entry in trunk.catalog.layers.items()}
    running = list(islice(streams, batch))
    decoded = 0
    with RoutingLogWriter(path, RoutingLogHeader(BUNDLED_NAME, layers, slot_bytes)) as writer:
        store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes, recorder=writer)
        while decoded < DECODE_STEPS:
            decoded += all(len(stream.new) == 1 for stream in running)
            chunks = [
                SequenceChunk(stream.new, stream.num_cached, [table])
                for stream, table in zip(running, tables, strict=True)
            ]
            logits = trunk.forward(chunks, cache, store).logits
            running = [
                stream if stream.advance(row) else next(streams) for stream, row in zip(running, logits, strict=True)
            ]
        store.close()
    print(f"{path.name}: {path.stat().st_size} bytes")


def record_all(corpus: Path, out: Path) -> None:
    """Write every routing log."""
    held_out = {name: split_documents(name, read_documents(path))[1] for name, path in find_domains(corpus).items()}
    out.mkdir(exist_ok=True)
    trunk, tokenizer = load_trunk(BUNDLED, torch.float32), Tokenizer(FolderCheckpoint(BUNDLED))
    kinds = {name: chat_streams if name == CHAT else text_streams for name in held_out}
    for name, texts in held_out.items():
        record(trunk, kinds[name](texts, tokenizer), 1, out / f"{name}.jsonl.gz")
    streams = alternate([kinds[name](texts, tokenizer) for name, texts in held_out.items()])
    record(trunk, streams, BATCH, out / "mixed.jsonl.gz")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    try:
        record_all(args.corpus, args.out)
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
