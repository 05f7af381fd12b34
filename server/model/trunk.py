"""The trunk: a transformers model whose routed experts are elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.kernels.batch_invariant import batch_invariant, is_batch_invariant
from server.kernels.expert import ExpertsModule

from .attention import attend_sequence
from .errors import ModelError
from .experts import run_paged_experts
from .gates import Routed, find_next_gates
from .invariant_attention import attend_invariant
from .kv_cache import KVCache, KVShape
from .seam import AttentionOptions, running
from .step import SequenceChunk, StepOutput

PROBE_TOKENS = 16  # enough to tell by which scores a router chooses


@dataclass(frozen=True)
class TrunkFacts:
    """What a first pass over some tokens shows of a model."""

    kv_shapes: dict[int, KVShape]  # by attention layer
    top_k: int  # experts a token, of the widest layer

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache a token."""
        return sum(shape.token_bytes for shape in self.kv_shapes.values())


class Trunk:
    """Everything of a model but its routed experts, resident and ready to run.

    Args:
        layers: the experts modules and their layers, in the order in which they run.
        is_deterministic: run steps with batch-invariant arithmetic, so that a sequence's logits do not depend on what
            else is in them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        is_deterministic: bool = False,
    ):
        self.catalog = catalog
        self._arithmetic = batch_invariant if is_deterministic else nullcontext
        self._model = model
        self._layers = layers
        self.config = model.config.get_text_config()
        self.device = model.device
        probe = self._look()
        self.facts = TrunkFacts(probe.kv_shapes, probe.top_k)
        self.gates = find_next_gates(model, layers, probe.routed)

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def max_model_len(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def nbytes(self) -> int:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.inference_mode()
    def forward(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
    ) -> StepOutput:
        """Run one ragged step.

        A step of decodes alone is shown to the prefetcher; one with a piece of a prompt asks for most experts anyway.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
        """
        started = time.perf_counter()
        if any(chunk.num_tokens > 1 for chunk in chunks):
            prefetcher = None
        seam = _PagedStep(chunks, kv_cache, store, self._layers, prefetcher)
        token_ids = [token for chunk in chunks for token in chunk.token_ids]
        positions = [chunk.num_cached + i for chunk in chunks for i in range(len(chunk.token_ids))]
        ends = list(accumulate(chunk.num_tokens for chunk in chunks))
        rows = [row for end, chunk in zip(ends, chunks, strict=True) for row in range(end - chunk.num_logits, end)]
        if prefetcher is not None:
            prefetcher.begin_step()
        with running(seam), self._arithmetic():
            logits = self._logits(token_ids, positions, rows)
        if prefetcher is not None:
            prefetcher.end_step(time.perf_counter() - started)
        return StepOutput(logits, seam.routing)

    def _logits(self, token_ids: Sequence[int], positions: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
        output = self._model(
            input_ids=torch.tensor([token_ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows, dtype=torch.long, device=self.device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float().cpu()

    @torch.inference_mode()
    def _look(self) -> _Probe:
        probe = _Probe()
        count = min(PROBE_TOKENS, self.max_model_len, self.vocab_size)
        spread = self.vocab_size // count
        with running(probe):
            self._logits(range(0, count * spread, spread), range(count), [0])
        if not probe.kv_shapes or not probe.routed:
            name = type(self._model).__name__
            raise ModelError(f"{name} does not use transformers' attention and experts interfaces; it can't be paged")
        return probe


class _PagedStep:
    """A step whose attention goes over the KV cache and whose experts come from the store."""

    def __init__(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        layers: Mapping[ExpertsModule, int],
        prefetcher: Prefetcher | None,
    ):
        self._cache, self._store, self._layers, self._prefetcher = kv_cache, store, layers, prefetcher
        self.routing: dict[int, npt.NDArray[np.int64]] = {}
        self._lengths = [chunk.num_tokens for chunk in chunks]
        self._phase: Phase = "decode" if all(length == 1 for length in self._lengths) else "prefill"
        # Where all tokens of each sequence lie, the new ones at its end.
        self._slots = [
            kv_cache.slots(chunk.block_tables[0], 0, chunk.num_cached + length)
            for chunk, length in zip(chunks, self._lengths, strict=True)
        ]
        self._new_slots = torch.cat([slots[-length:] for slots, length in zip(self._slots, self._lengths, strict=True)])

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self._cache.write(layer, self._new_slots, key.transpose(0, 1), value.transpose(0, 1))
        outputs = []
        attend = attend_invariant if is_batch_invariant() else attend_sequence
        parts = torch.split(query, self._lengths, dim=1)
        for part, slots, length in zip(parts, self._slots, self._lengths, strict=True):
            window = options.sliding_window
            first = max(0, len(slots) - length - window + 1) if window else 0
            keys, values = self._cache.read(layer, slots[first:])
            outputs.append(attend(part, keys, values, first, options).transpose(0, 1))
        return torch.cat(outputs)

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        layer = self._layers[module]
        self.routing[layer] = top_k_index.cpu().numpy()
        return run_paged_experts(
            module, layer, self._store, self._phase, hidden_states, top_k_index, top_k_weights, self._prefetcher
        )


class _Probe:
    """A step that runs no expert and only notes what it is given."""

    def __init__(self) -> None:
        self.kv_shapes: dict[int, KVShape] = {}
        self.routed: dict[ExpertsModule, Routed] = {}

    @property
    def top_k(self) -> int:
        return max(sample.top_k_index.shape[-1] for sample in self.routed.values())

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self.kv_shapes[layer] = KVShape(len(key), key.shape[-1], value.shape[-1], key.dtype)
        return attend_sequence(query, key, value, 0, options).transpose(0, 1)

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        del top_k_weights
        self.routed[module] = Routed(hidden_states, top_k_index)
        return torch.zeros_like(hidden_states)
