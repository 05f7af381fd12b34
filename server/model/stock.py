"""A transformers model as transformers would run it, on one sequence with a cache of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule

from .errors import ModelError
from .forward import Forward
from .gates import Routed
from .kv_cache import KVGroup
from .probe import Probe
from .seam import running
from .states import StateShapes
from .step import SequenceChunk
from .stock_cache import Past, footprint, measure

PROBE_TOKENS = 16  # of a sequence that is looked at; twice as many show what each takes
ROUNDING = 0.1  # of a row of logits, in bfloat16 too; what a lost past changes is much more


class StockModel:
    """A causal language model with the attention and the cache that transformers takes for it."""

    def __init__(self, model: PreTrainedModel):
        self._forward = Forward(model)

    def logits(self, chunk: SequenceChunk, past: Past) -> torch.Tensor:
        """Run a chunk whose earlier tokens are in the past, and add it: float32 ``(num_logits, vocabulary)``."""
        count = chunk.num_tokens
        positions = range(chunk.num_cached, chunk.num_cached + count)
        rows = range(count - chunk.num_logits, count)
        logits, output = self._forward.run(chunk.token_ids, positions, rows, cache=past.cache, use_cache=True)
        past.cache = output.cache
        return logits


def cut_singly(chunk: SequenceChunk) -> list[SequenceChunk]:
    """A chunk's tokens one by one."""
    first = chunk.num_tokens - chunk.num_logits
    return [
        replace(chunk, token_ids=[token], num_cached=chunk.num_cached + place, num_logits=int(place >= first))
        for place, token in enumerate(chunk.token_ids)
    ]


@dataclass(frozen=True)
class StockFacts:
    """What a first pass over a sequence shows."""

    kv_groups: tuple[KVGroup, ...]
    states: StateShapes
    routed: Mapping[ExpertsModule, Routed]
    top_k: int  # experts a token, of the widest layer
    vocab_size: int  # logits of a token


@torch.inference_mode()
def look_at_stock(model: StockModel, name: str, beginning: SequenceChunk, rest: SequenceChunk) -> StockFacts:
    """Run a sequence in two pieces of one length.

    Raises:
        ModelError: its experts do not come to us.
    """
    probe, past = Probe(), Past()
    with running(probe):
        model.logits(beginning, past)
        before = measure(past)
        logits = model.logits(rest, past)
    if not probe.routed:
        raise ModelError(f"{name} does not use transformers' experts interface; it can't be paged")
    groups, states = footprint(before, measure(past), rest.num_tokens)
    return StockFacts(groups, states, probe.routed, probe.top_k, logits.shape[-1])


@torch.inference_mode()
def goes_on_singly(model: StockModel, name: str, beginning: SequenceChunk, rest: SequenceChunk) -> bool:
    """Whether what follows the beginning of a sequence has to be run token by token, to give what it gives as a whole.

    Raises:
        ModelError: not even that gives it.
    """

    def run(chunks: Sequence[SequenceChunk]) -> torch.Tensor:
        past = Past()
        with running(Probe()):
            rows = [model.logits(chunk, past) for chunk in chunks]
        return torch.cat(rows)[-rest.num_logits :]

    whole = run([replace(rest, token_ids=[*beginning.token_ids, *rest.token_ids], num_cached=0)])
    if _is_close(run([beginning, rest]), whole):
        return False
    if _is_close(run([beginning, *cut_singly(rest)]), whole):
        return True
    raise ModelError(f"{name} can't go on from what transformers' cache keeps of a sequence")


def sample_sequence(vocab_size: int, max_model_len: int) -> tuple[SequenceChunk, SequenceChunk]:
    """Some tokens in two pieces of one length, the second of which gives logits."""
    count = max(1, min(PROBE_TOKENS, max_model_len // 2, vocab_size // 2))
    tokens = [place * (vocab_size // (2 * count)) for place in range(2 * count)]
    return SequenceChunk(tokens[:count], 0, [], 0), SequenceChunk(tokens[count:], count, [], count)


def _is_close(rows: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether each row is the other, but for rounding."""
    spread = others - others.mean(-1, keepdim=True)
    return bool(((rows - others).norm(dim=-1) <= ROUNDING * spread.norm(dim=-1)).all())
