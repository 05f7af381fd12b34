"""DecoderOnly: a causal language model as transformers runs it, on one sequence with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from server.model.errors import ModelError
from server.model.hooks import use_hooks
from server.model.modules.forward import Forward
from server.model.multimodal.image_embeddings import StepImages
from server.model.sequential.facts import SequentialFacts, sample_sequence, sequential_facts
from server.model.sequential.transformers_cache import TransformersCache, groups_and_states, measure_layers
from server.model.step import SequenceChunk
from server.model.transformers_hooks.probe import Probe

ROUNDING = 0.1  # tolerance relative to a row of logits, in bfloat16 too; a lost cache changes them much more


class DecoderOnly:
    """A causal language model with the attention and the cache that transformers chooses for it."""

    is_encoder_decoder = False

    def __init__(self, model: PreTrainedModel):
        self._model, self._forward, self._name = model, Forward(model), type(model).__name__

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states that the last chunk wanted, float32 ``(num_hidden, hidden)``."""
        return self._forward.hidden

    @property
    def hidden_size(self) -> int:
        """The size of a token's hidden states, once there was a chunk."""
        return self._forward.hidden_size

    def logits(self, chunk: SequenceChunk, cache: TransformersCache) -> torch.Tensor:
        """Run a chunk after the tokens in the cache, and add it: float32 ``(num_logits, vocabulary)``."""
        count = chunk.num_tokens
        positions = range(chunk.num_cached, chunk.num_cached + count)
        rows, hidden = range(count - chunk.num_logits, count), range(count - chunk.num_hidden, count)
        overlay = None if chunk.media is None else StepImages.of(self._model, [chunk])
        logits, output = self._forward.run(
            chunk.token_ids, positions, rows, overlay, hidden, cache=cache.layers, use_cache=True
        )
        cache.layers = output.cache
        for layer in cache.layers.layers if chunk.num_prompt else ():
            if hasattr(layer, "prefill_length"):  # the layer keeps all of a prompt, and a window of what follows
                layer.prefill_length = chunk.num_prompt
        return logits

    @torch.inference_mode()
    def probe(self, vocab_size: int, max_model_len: int) -> SequentialFacts:
        """Run a sequence in two pieces of the same length, and return the facts that they show.

        Raises:
            ModelError: the model's experts do not call the hooks.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)
        probe, cache = Probe(), TransformersCache()
        with use_hooks(probe):
            self.logits(beginning, cache)
            before = measure_layers(cache)
            logits = self.logits(rest, cache)
        memory = groups_and_states(before, measure_layers(cache), rest.num_tokens)
        return sequential_facts(self._name, probe, memory, logits, probe.routed)

    @torch.inference_mode()
    def resumes_by_token(self, vocab_size: int, max_model_len: int) -> bool:
        """Return whether tokens after the beginning of a sequence have to run one by one to be right.

        Raises:
            ModelError: they are wrong even then.
        """
        beginning, rest = sample_sequence(vocab_size, max_model_len)

        def run(chunks: Sequence[SequenceChunk]) -> torch.Tensor:
            cache = TransformersCache()
            with use_hooks(Probe()):
                rows = [self.logits(chunk, cache) for chunk in chunks]
            return torch.cat(rows)[-rest.num_logits :]

        expected = run([replace(rest, token_ids=[*beginning.token_ids, *rest.token_ids], num_cached=0)])
        if _is_close(run([beginning, rest]), expected):
            return False
        if _is_close(run([beginning, *rest.split(range(1, rest.num_tokens))]), expected):
            return True
        raise ModelError(f"{self._name} can't be served: it can't continue a sequence from transformers' cache")


def _is_close(rows: torch.Tensor, others: torch.Tensor) -> bool:
    """Return whether the rows are equal but for rounding."""
    spread = others - others.mean(-1, keepdim=True)
    return bool(((rows - others).norm(dim=-1) <= ROUNDING * spread.norm(dim=-1)).all())
