"""Encoder-decoder models: a prompt is read as a whole, and what is written after it are the decoder's own tokens.

To the engine they are sequences like any others: a prompt, whose last token gives the first logits, and what follows.
The decoder's first tokens, which no one writes, are this module's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from .errors import ModelError
from .probe import Probe
from .seam import running
from .step import SequenceChunk
from .stock import StockFacts, StockModel, sample_sequence, stock_facts
from .stock_cache import Past, footprint, measure


class EncoderDecoder:
    """A sequence-to-sequence model with the attention and the caches that transformers takes for it.

    Args:
        model: with the ``generation_config`` of its checkpoint.

    Raises:
        ModelError: it does not say what its decoder begins with.
    """

    reads_whole = True
    hidden, hidden_size = torch.empty((0, 0)), 0  # it gives none

    def __init__(self, model: PreTrainedModel):
        self._model: Any = model
        self._first = _first_tokens(model)

    def logits(self, chunk: SequenceChunk, past: Past) -> torch.Tensor:
        """Run a chunk: float32 ``(num_logits, vocabulary)``, of none of the prompt's tokens but the last.

        Tokens of the prompt are kept until all have come. Those of the decoder are run one by one, so that a router
        that lets an expert take only so many tokens of a run at once gives each the one that it had when it was
        written.
        """
        left = max(0, chunk.num_prompt - chunk.num_cached)
        past.prompt += chunk.token_ids[:left]
        rows = []
        if 0 < left <= chunk.num_tokens:
            past.encoded = self._encode(past.prompt)
            rows = [self._decode(token, past) for token in self._first]
        rows += [self._decode(token, past) for token in chunk.token_ids[left:]]
        rows = rows[len(rows) - chunk.num_logits :]
        return torch.stack(rows) if rows else torch.empty((0, int(self._model.config.vocab_size)))

    @torch.inference_mode()
    def look(self, vocab_size: int, max_model_len: int) -> StockFacts:
        """What tokens of a prompt and of an answer take; blocks hold either.

        Raises:
            ModelError: its experts do not come to us.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)
        count = beginning.num_tokens
        probe, answering, past, longer = Probe(), Probe(), Past(), Past()
        with running(probe):
            self.logits(replace(beginning, num_prompt=count), past)
            before = measure(past)
            self.logits(beginning, longer)
            self.logits(replace(rest, num_logits=1), longer)
        with running(answering):
            logits = self.logits(replace(rest, num_logits=1, num_prompt=count), past)
        of_each = [footprint(before, measure(after), count) for after in (past, longer)]
        most = max(of_each, key=lambda each: sum(group.token_bytes for group in each[0]))
        return stock_facts(type(self._model).__name__, probe, most, logits, answering.routed)

    def _encode(self, prompt: Sequence[int]) -> Any:
        return self._model.get_encoder()(input_ids=torch.tensor([prompt], device=self._model.device))

    def _decode(self, token: int, past: Past) -> torch.Tensor:
        """Logits of the token that follows, ``(vocabulary,)``."""
        output = self._model(
            encoder_outputs=past.encoded,
            decoder_input_ids=torch.tensor([[token]], device=self._model.device),
            cache=past.cache,
            use_cache=True,
        )
        past.cache = output.cache
        logits: torch.Tensor = output.logits[0, -1]
        return logits.float().cpu()


def stock_model(model: PreTrainedModel) -> StockModel | EncoderDecoder:
    """A model as transformers runs it."""
    return EncoderDecoder(model) if model.config.is_encoder_decoder else StockModel(model)


def _first_tokens(model: PreTrainedModel) -> list[int]:
    """What the decoder is given before its first token, as ``transformers.generation`` has it."""
    config, own = model.generation_config, model.config
    starts = [config.decoder_start_token_id, getattr(own, "decoder_start_token_id", None)]
    starts += [config.bos_token_id, own.pad_token_id]
    start = next((token for token in starts if token is not None), None)
    if not isinstance(start, int):
        raise ModelError(f"{type(model).__name__}: generation_config.json names no decoder_start_token_id")
    forced = config.forced_bos_token_id
    return [start] if forced is None else [start, int(forced)]
