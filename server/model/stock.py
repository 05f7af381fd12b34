"""A transformers model as transformers would run it, on one sequence with a cache of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from server.kernels.expert import ExpertsModule

from .errors import ModelError
from .gates import Routed
from .kv_cache import KVGroup
from .probe import Probe
from .seam import running
from .states import StateShapes
from .step import SequenceChunk
from .stock_cache import footprint, measure

PROBE_TOKENS = 16  # of a sequence that is looked at; twice as many show what each takes
ROUNDING = 0.1  # of a row of logits, in bfloat16 too; what a lost past changes is much more


class StockModel:
    """A causal language model with the attention and the cache that transformers takes for it."""

    def __init__(self, model: PreTrainedModel):
        self._model = model

    def new_cache(self) -> Any:
        return DynamicCache(config=self._model.config)

    def logits(self, chunk: SequenceChunk, cache: Any) -> torch.Tensor:
        """Run a chunk whose earlier tokens are in the cache: float32 ``(num_logits, vocabulary)``."""
        device, count = self._model.device, chunk.num_tokens
        output = self._model(
            input_ids=torch.tensor([chunk.token_ids], device=device),
            position_ids=torch.arange(chunk.num_cached, chunk.num_cached + count, device=device)[None],
            cache=cache,
            use_cache=True,
            logits_to_keep=torch.arange(count - chunk.num_logits, count, device=device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float().cpu()

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
    steps_singly: bool  # whether what follows the beginning of a sequence has to be run token by token


@torch.inference_mode()
def look_at_stock(model: StockModel, name: str, vocab_size: int, max_model_len: int) -> StockFacts:
    """Run a sequence whole and in pieces.

    Raises:
        ModelError: its experts do not come to us, or its cache does not hold what the next tokens need.
    """
    count = max(1, min(PROBE_TOKENS, max_model_len // 2, vocab_size // 2))
    tokens = list(islice(range(0, vocab_size, vocab_size // (2 * count)), 2 * count))
    begin, go_on = SequenceChunk(tokens[:count], 0, [], 0), SequenceChunk(tokens[count:], count, [], count)
    probe = Probe()
    with running(probe):
        whole = model.logits(SequenceChunk(tokens, 0, [], count), model.new_cache())
    with running(Probe()):
        cache = model.new_cache()
        model.logits(begin, cache)
        before = measure(cache)
        together = model.logits(go_on, cache)
        groups, states = footprint(before, measure(cache), count)
        cache = model.new_cache()
        model.logits(begin, cache)
        singly = torch.cat([model.logits(single, cache) for single in cut_singly(go_on)])
    if not probe.routed:
        raise ModelError(f"{name} does not use transformers' experts interface; it can't be paged")
    steps_singly = not _is_close(together, whole)
    if steps_singly and not _is_close(singly, whole):
        raise ModelError(f"{name} can't go on from what transformers' cache keeps of a sequence")
    return StockFacts(groups, states, probe.routed, probe.top_k, whole.shape[-1], steps_singly)


def _is_close(rows: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether each row is the other, but for rounding."""
    spread = others - others.mean(-1, keepdim=True)
    return bool(((rows - others).norm(dim=-1) <= ROUNDING * spread.norm(dim=-1)).all())
