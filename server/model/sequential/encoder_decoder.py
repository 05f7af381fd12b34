"""EncoderDecoder: a model whose encoder reads the complete prompt, and whose decoder writes the answer.

The engine sees sequences like any others: a prompt, whose last token has the first logits, and the tokens that follow.
The decoder's first tokens, which nobody generates, are added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from server.model.errors import ModelError
from server.model.hooks import use_hooks
from server.model.sequential.facts import SequentialFacts, sample_sequence, sequential_facts
from server.model.sequential.transformers_cache import TransformersCache, groups_and_states, measure_layers
from server.model.step import SequenceChunk
from server.model.transformers_hooks.probe import Probe


class EncoderDecoder:
    """A sequence-to-sequence model with the attention and the caches that transformers chooses for it.

    Args:
        model: with the ``generation_config`` of its checkpoint.

    Raises:
        ModelError: the model does not name the decoder's first token.
    """

    is_encoder_decoder = True
    hidden, hidden_size = torch.empty((0, 0)), 0  # it returns no hidden states

    def __init__(self, model: PreTrainedModel):
        self._model: Any = model
        self._first = _first_tokens(model)

    def logits(self, chunk: SequenceChunk, cache: TransformersCache) -> torch.Tensor:
        """Run a chunk: float32 ``(num_logits, vocabulary)``, for no token of the prompt but the last.

        Tokens of the prompt are kept until all have come. Those of the decoder run one by one: a router may limit how
        many tokens of a call an expert takes, and each token must get the experts that it had when it was generated.
        """
        left = max(0, chunk.num_prompt - chunk.num_cached)
        cache.prompt += chunk.token_ids[:left]
        rows = []
        if 0 < left <= chunk.num_tokens:
            cache.encoded = self._encode(cache.prompt)
            rows = [self._decode(token, cache) for token in self._first]
        rows += [self._decode(token, cache) for token in chunk.token_ids[left:]]
        rows = rows[len(rows) - chunk.num_logits :]
        return torch.stack(rows) if rows else torch.empty((0, int(self._model.config.vocab_size)))

    @torch.inference_mode()
    def probe(self, vocab_size: int, max_model_len: int) -> SequentialFacts:
        """Measure the bytes of tokens of a prompt and of an answer; blocks are large enough for either.

        Raises:
            ModelError: the model's experts do not call the hooks.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)
        count = beginning.num_tokens
        probe, answering, cache, longer = Probe(), Probe(), TransformersCache(), TransformersCache()
        with use_hooks(probe):
            self.logits(replace(beginning, num_prompt=count), cache)
            before = measure_layers(cache)
            self.logits(beginning, longer)
            self.logits(replace(rest, num_logits=1), longer)
        with use_hooks(answering):
            logits = self.logits(replace(rest, num_logits=1, num_prompt=count), cache)
        of_each = [groups_and_states(before, measure_layers(after), count) for after in (cache, longer)]
        most = max(of_each, key=lambda each: sum(group.token_bytes for group in each[0]))
        return sequential_facts(type(self._model).__name__, probe, most, logits, answering.routed)

    def _encode(self, prompt: Sequence[int]) -> Any:
        return self._model.get_encoder()(input_ids=torch.tensor([prompt], device=self._model.device))

    def _decode(self, token: int, cache: TransformersCache) -> torch.Tensor:
        """Return the logits after a token, ``(vocabulary,)``."""
        output = self._model(
            encoder_outputs=cache.encoded,
            decoder_input_ids=torch.tensor([[token]], device=self._model.device),
            cache=cache.layers,
            use_cache=True,
        )
        cache.layers = output.cache
        logits: torch.Tensor = output.logits[0, -1]
        return logits.float().cpu()


def _first_tokens(model: PreTrainedModel) -> list[int]:
    """Return the decoder's first tokens, by the same rules as ``transformers.generation``."""
    config, own = model.generation_config, model.config
    starts = [config.decoder_start_token_id, getattr(own, "decoder_start_token_id", None)]
    starts += [config.bos_token_id, own.pad_token_id]
    start = next((token for token in starts if token is not None), None)
    if not isinstance(start, int):
        raise ModelError(
            f"{type(model).__name__}: generation_config.json names no decoder_start_token_id; add the one of the model"
        )
    forced = config.forced_bos_token_id
    return [start] if forced is None else [start, int(forced)]
