"""The trunk: a transformers model whose routed experts are elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Phase, Prefetcher
from server.kernels.batch_invariant import batch_invariant
from server.kernels.expert import ExpertsModule
from server.kernels.pool import ComputePool
from server.kernels.tiles import NotInvariantError

from .architecture import text_part
from .attention import StepAttention
from .cells import Discovery, parts_of, split_cells
from .errors import ModelError, NotBatchableError
from .experts import StepExperts, expert_layers
from .forward import Forward
from .gates import find_next_gates
from .invariant_attention import InvariantAttention
from .kv_cache import KVCache, KVGroup
from .lean.find import find_lean
from .lean.model import LeanModel
from .linear import speed_up_linears
from .masks import with_masks
from .media import Overlay
from .mla import LatentAttention, replace_projections, settle_projections
from .probe import Isolation, Probe
from .rope import settle_length
from .routing import Rows, chosen_by, costs_of
from .seam import running
from .states import StateCache, StateShapes, StepStates, states_bytes
from .step import SequenceChunk, StepOutput
from .support import depends_on_company, find_leak

log = logging.getLogger(__name__)

PROBE_TOKENS = 17  # enough to tell by which scores a router chooses, and not the size of anything else


@dataclass(frozen=True)
class TrunkFacts:
    """What a first pass over some tokens shows of a model."""

    kv_groups: tuple[KVGroup, ...]  # of attention layers, by how far back they see
    top_k: int  # experts a token, of the widest layer
    states: StateShapes  # of one sequence, in recurrent layers
    text_layers: tuple[int, ...]  # of experts that tokens of text go to, in the order in which they run
    solo_reason: str | None = None  # why sequences are computed one after the other, if they are
    reads_whole: bool = False  # a prompt is read as a whole and answered, instead of being continued
    hidden_size: int = 0  # of last hidden states; 0 if it gives none
    is_native: bool = False  # whether native kernels run whole decoder layers

    @property
    def is_solo(self) -> bool:
        return self.solo_reason is not None

    @property
    def shares_prefixes(self) -> bool:
        """Whether a sequence can go on from blocks that another wrote."""
        return not self.is_solo

    @property
    def state_bytes(self) -> int:
        """Bytes that a sequence takes besides its KV cache, however long it is."""
        return states_bytes(self.states)

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache a token, in all groups together."""
        return sum(group.token_bytes for group in self.kv_groups)


class ResidentModel:
    """Everything of a model but its routed experts, resident; what is the same however it runs.

    Args:
        layers: the experts modules and their layers, in the order in which they run.
        is_deterministic: compute so that what else is in a step changes no bit of a sequence's logits.
        pool: threads that compute side by side; none is the caller's alone.
        max_model_len: that is asked for, where the model's rotary frequencies depend on it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        is_deterministic: bool,
        pool: ComputePool | None,
        max_model_len: int | None,
    ):
        self.catalog = catalog
        self._pool = pool or ComputePool(1)
        self._is_deterministic = is_deterministic
        self._model = model
        self._layers = expert_layers(layers, catalog, self._pool)
        self.config = model.config.get_text_config()
        self.max_model_len = settle_length(model, self.config, max_model_len)  # tokens of the longest sequence
        self.device = model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Trunk(ResidentModel):
    """A model that runs many sequences in one step; in deterministic steps with batch-invariant arithmetic."""

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        is_deterministic: bool = False,
        pool: ComputePool | None = None,
        max_model_len: int | None = None,
    ):
        super().__init__(model, catalog, layers, is_deterministic, pool, max_model_len)
        self._logits = Forward(model)
        replace_projections(model)
        probe, states = self._look()
        self._lean = self._find_lean()
        if is_deterministic and self._lean is None:
            self._check_invariance()
        settle_projections(model, probe.latent_layers)
        speed_up_linears(model, self._pool)
        text_layers = tuple(layer for module, layer in layers.items() if module in probe.routed)
        size = self._logits.hidden_size
        self.facts = TrunkFacts(
            probe.kv_groups, probe.top_k, states, text_layers, hidden_size=size, is_native=self._lean is not None
        )
        self.gates = find_next_gates(model, layers, probe.routed)

    @property
    def is_invariant(self) -> bool:
        """True if a token's results do not depend on what else is in its step."""
        return self._is_deterministic or self._lean is not None

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    def new_states(self, num_slots: int) -> StateCache:
        """Room for what recurrent layers keep of so many sequences."""
        return StateCache(self.facts.states, num_slots, self.device)

    @torch.inference_mode()
    def forward(
        self,
        chunks: Sequence[SequenceChunk],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> StepOutput:
        """Run one ragged step. A step that failed changed nothing, and can be run again.

        A step of decodes alone is shown to the prefetcher; one with a piece of a prompt asks for most experts anyway.

        Args:
            states: what ``new_states`` gave; a model without recurrent layers needs none.

        Raises:
            ExpertLoadError: an expert that the step needs can't be read.
        """
        started = time.perf_counter()
        phase: Phase = "decode" if all(chunk.num_tokens == 1 for chunk in chunks) else "prefill"
        if phase == "prefill" or any(chunk.shows_images for chunk in chunks):
            prefetcher = None
        experts = StepExperts(store, self._layers, phase, prefetcher)
        token_ids = [token for chunk in chunks for token in chunk.token_ids]
        ends = list(accumulate(chunk.num_tokens for chunk in chunks))
        rows = [row for end, chunk in zip(ends, chunks, strict=True) for row in range(end - chunk.num_logits, end)]
        hidden = [row for end, chunk in zip(ends, chunks, strict=True) for row in range(end - chunk.num_hidden, end)]
        if prefetcher is not None:
            prefetcher.begin_step()
        overlay = None
        if self._lean is not None:
            logits, states_of_rows = self._lean.run(chunks, token_ids, kv_cache, experts, rows, hidden)
        else:
            positions = [chunk.num_cached + i for chunk in chunks for i in range(len(chunk.token_ids))]
            step_states = self._step_states(chunks, states)
            overlay = Overlay.of(self._model, chunks) if any(chunk.media for chunk in chunks) else None
            attention = self._attention(chunks, kv_cache)
            with (
                running(_PagedStep(LatentAttention(attention), experts)),
                batch_invariant() if self._is_deterministic else nullcontext(),
            ):
                logits = self._logits(token_ids, positions, rows, step_states, overlay, hidden)
            states_of_rows = self._logits.hidden
            if step_states is not None:
                step_states.commit()
        if prefetcher is not None:
            prefetcher.end_step(time.perf_counter() - started)
        routing = {layer: chosen for layer, chosen in experts.routing.items() if len(chosen) == len(token_ids)}
        layers = self.facts.text_layers
        split = Rows(chunks, None if overlay is None else overlay.are_images(len(token_ids)), layers)
        costs = costs_of(experts.runs, split)
        chosen = chosen_by(experts.runs, split, layers)
        return StepOutput(logits, routing, experts.cost, costs, chosen, states_of_rows, experts.stalls)

    @torch.inference_mode()
    def _look(self) -> tuple[Probe, StateShapes]:
        probe, discovery = Probe(), Discovery()
        tokens = self._probe_tokens()
        count = len(tokens)
        with running(probe), with_masks(self._model), discovery.watching(text_part(self._model)):
            self._logits(tokens, range(count), [0], discovery)
        split_cells(discovery.cells, count)
        self._has_cells = bool(discovery.cells)
        name = type(self._model).__name__
        if not probe.routed:
            raise ModelError(f"{name} does not use transformers' experts interface; it can't be paged")
        if not probe.kv_groups:
            raise NotBatchableError(f"{name} does not use transformers' attention interface")
        with running(Isolation()):
            leak = find_leak(self._model, tokens, lambda company: self._isolated_logits(company, range(count)))
        if leak is not None:
            raise NotBatchableError(
                f"{name} mixes tokens outside of its attention (by recurrence or convolution, up to {leak})"
            )
        return probe, discovery.shapes

    def _probe_tokens(self) -> Sequence[int]:
        count = min(PROBE_TOKENS, self.max_model_len, self.vocab_size)
        spread = self.vocab_size // count
        return range(0, count * spread, spread)

    @torch.inference_mode()
    def _find_lean(self) -> LeanModel | None:
        """The model as the native kernels run it; None if they can't, of which the log tells."""
        kernels = self._pool.kernels
        if kernels is None:
            return None
        tokens = self._probe_tokens()
        found = find_lean(self._model, self._logits, self._layers, tokens, kernels, self.max_model_len)
        if isinstance(found, LeanModel):
            return found
        log.info("%s goes through the modules of transformers: %s", type(self._model).__name__, found)
        return None

    def _attention(self, chunks: Sequence[SequenceChunk], kv_cache: KVCache) -> InvariantAttention | StepAttention:
        if self._is_deterministic:
            return InvariantAttention(chunks, kv_cache)
        return StepAttention(chunks, kv_cache, self._pool)

    def _isolated_logits(self, token_ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Of tokens none of which knows of another, ``(tokens, vocabulary)``; recurrent modules do not run."""
        hollow = StepStates(parts_of([SequenceChunk(token_ids, 0, [])], self.device), is_hollow=True)
        return self._logits(token_ids, positions, range(len(token_ids)), hollow if self._has_cells else None)

    def _step_states(self, chunks: Sequence[SequenceChunk], states: StateCache | None) -> StepStates | None:
        """What the model is given as its cache; None if nothing would ask for it."""
        if not self._has_cells:
            return None
        copies = [(chunk.slot, chunk.snapshot) for chunk in chunks if chunk.snapshot is not None]
        return StepStates(parts_of(chunks, self.device, self._is_deterministic), copies, states, self._is_deterministic)

    @torch.inference_mode()
    def _check_invariance(self) -> None:
        tokens = self._probe_tokens()
        name = type(self._model).__name__
        try:
            with running(Isolation()), batch_invariant():
                depends = depends_on_company(tokens, self._isolated_logits)
        except NotInvariantError as error:
            raise ModelError(str(error)) from error
        if depends:
            raise ModelError(
                f"{name} computes a token in another way in other company; serve it without --deterministic"
            )


class _PagedStep:
    """A step whose attention goes over the KV cache and whose experts come from the store."""

    def __init__(self, attention: LatentAttention, experts: StepExperts):
        self.attend, self.expand, self.run_experts = attention.attend, attention.expand, experts.run
