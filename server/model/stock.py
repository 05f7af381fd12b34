"""A transformers model as transformers would run it, on one sequence with a cache of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule

from .errors import ModelError
from .forward import Forward
from .gates import Routed
from .kv_cache import KVGroup
from .media import Overlay
from .probe import Probe
from .seam import running
from .states import StateShapes
from .step import SequenceChunk
from .stock_cache import Past, footprint, measure

PROBE_TOKENS = 16  # of a sequence that is looked at; twice as many show what each takes
ROUNDING = 0.1  # of a row of logits, in bfloat16 too; what a lost past changes is much more


@dataclass(frozen=True)
class StockFacts:
    """What a first pass over a sequence shows."""

    kv_groups: tuple[KVGroup, ...]
    states: StateShapes
    routed: Mapping[ExpertsModule, Routed]
    top_k: int  # experts a token, of the widest layer
    vocab_size: int  # logits of a token
    writing: Collection[ExpertsModule]  # of the experts modules, those that run for each token that is written


class StockModel:
    """A causal language model with the attention and the cache that transformers takes for it."""

    reads_whole = False  # no token of a prompt but the last has logits

    def __init__(self, model: PreTrainedModel):
        self._model, self._forward, self._name = model, Forward(model), type(model).__name__

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states that the last chunk wanted, float32 ``(num_hidden, hidden)``."""
        return self._forward.hidden

    @property
    def hidden_size(self) -> int:
        """Of a token, once there was a chunk."""
        return self._forward.hidden_size

    def logits(self, chunk: SequenceChunk, past: Past) -> torch.Tensor:
        """Run a chunk whose earlier tokens are in the past, and add it: float32 ``(num_logits, vocabulary)``."""
        count = chunk.num_tokens
        positions = range(chunk.num_cached, chunk.num_cached + count)
        rows, hidden = range(count - chunk.num_logits, count), range(count - chunk.num_hidden, count)
        overlay = None if chunk.media is None else Overlay.of(self._model, [chunk])
        logits, output = self._forward.run(
            chunk.token_ids, positions, rows, overlay, hidden, cache=past.cache, use_cache=True
        )
        past.cache = output.cache
        for layer in past.cache.layers if chunk.num_prompt else ():
            if hasattr(layer, "prefill_length"):  # it keeps all of a prompt, and the last tokens of what follows
                layer.prefill_length = chunk.num_prompt
        return logits

    @torch.inference_mode()
    def look(self, vocab_size: int, max_model_len: int) -> StockFacts:
        """Run a sequence in two pieces of one length.

        Raises:
            ModelError: its experts do not come to us.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)
        probe, past = Probe(), Past()
        with running(probe):
            self.logits(beginning, past)
            before = measure(past)
            logits = self.logits(rest, past)
        return stock_facts(self._name, probe, footprint(before, measure(past), rest.num_tokens), logits, probe.routed)

    @torch.inference_mode()
    def goes_on_singly(self, vocab_size: int, max_model_len: int) -> bool:
        """Whether what follows the beginning of a sequence gives what it gives as a whole token by token only.

        Raises:
            ModelError: it does not even then.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)

        def run(chunks: Sequence[SequenceChunk]) -> torch.Tensor:
            past = Past()
            with running(Probe()):
                rows = [self.logits(chunk, past) for chunk in chunks]
            return torch.cat(rows)[-rest.num_logits :]

        whole = run([replace(rest, token_ids=[*beginning.token_ids, *rest.token_ids], num_cached=0)])
        if _is_close(run([beginning, rest]), whole):
            return False
        if _is_close(run([beginning, *cut(rest, range(1, rest.num_tokens))]), whole):
            return True
        raise ModelError(f"{self._name} can't go on from what transformers' cache keeps of a sequence")


def stock_facts(
    name: str,
    probe: Probe,
    footprint: tuple[tuple[KVGroup, ...], StateShapes],
    logits: torch.Tensor,
    writing: Collection[ExpertsModule],
) -> StockFacts:
    """What was seen.

    Raises:
        ModelError: the model's experts do not come to us.
    """
    if not probe.routed:
        raise ModelError(f"{name} does not use transformers' experts interface; it can't be paged")
    return StockFacts(*footprint, probe.routed, probe.top_k, logits.shape[-1], writing)


def cut(chunk: SequenceChunk, places: Iterable[int]) -> list[SequenceChunk]:
    """A chunk in pieces.

    Args:
        places: of the chunk's tokens, those that a piece begins with; the first is understood.
    """
    first, first_hidden = chunk.num_tokens - chunk.num_logits, chunk.num_tokens - chunk.num_hidden
    return [
        replace(
            chunk,
            token_ids=chunk.token_ids[start:end],
            num_cached=chunk.num_cached + start,
            num_logits=max(0, end - max(start, first)),
            num_hidden=max(0, end - max(start, first_hidden)),
        )
        for start, end in pairwise([0, *places, chunk.num_tokens])
    ]


def sample_sequence(vocab_size: int, max_model_len: int) -> tuple[SequenceChunk, SequenceChunk]:
    """Some tokens of a prompt in two pieces of one length, the second of which gives logits."""
    count = max(1, min(PROBE_TOKENS, max_model_len // 2, vocab_size // 2))
    tokens = [place * (vocab_size // (2 * count)) for place in range(2 * count)]
    whole = SequenceChunk(tokens, 0, [], count, num_prompt=2 * count)
    beginning, rest = cut(whole, [count])
    return beginning, rest


def _is_close(rows: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether each row is the other, but for rounding."""
    spread = others - others.mean(-1, keepdim=True)
    return bool(((rows - others).norm(dim=-1) <= ROUNDING * spread.norm(dim=-1)).all())
