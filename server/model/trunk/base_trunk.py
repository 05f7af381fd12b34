"""BaseTrunk: what all trunks have in common, and their facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from expert_store import ExpertCatalog, ExpertStore, Prefetcher
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.adapters.tables import tables_of
from server.model.architecture import text_part
from server.model.attention.kv_cache import KVCache, KVGroup
from server.model.attention.rope import apply_max_length
from server.model.experts.expert_layer import expert_layers
from server.model.experts.router import RouterWeights
from server.model.experts.step_variants import PlaceTables
from server.model.lora.linear_hooks import sizes_of
from server.model.lora_adapter import LoraAdapter
from server.model.program import ModelProgram
from server.model.prompt_pass import PromptPass
from server.model.recurrent.states import StateCache, StateShapes, state_rows, states_bytes
from server.model.step import SequenceChunk


@dataclass(frozen=True)
class TrunkFacts:
    """The facts about a model that a first pass over some tokens shows."""

    kv_groups: tuple[KVGroup, ...]  # attention layers grouped by window
    top_k: int  # experts a token, of the widest layer
    states: StateShapes  # states of one sequence in recurrent layers
    text_layers: tuple[int, ...]  # layers of experts that tokens of text go to, in the order in which they run
    program: ModelProgram  # what runs where
    is_encoder_decoder: bool = False  # an encoder reads the prompt, and a decoder writes the answer
    is_encoder: bool = False  # it reads a prompt in both directions, and writes nothing
    uses_every_expert: bool = False  # in each pass
    reads_images: bool = False  # its prompts are images alone
    labels: tuple[str, ...] = ()  # their names, of a model that classifies
    hidden_size: int = 0  # size of last hidden states; 0 if the model returns none
    is_by_sequence: bool = False  # its attention modules run sequence by sequence, with causal masks
    has_gpu: bool = False

    @property
    def is_sequential(self) -> bool:
        return self.program.is_sequential

    @property
    def shares_prefixes(self) -> bool:
        """True if a sequence can continue from blocks that another wrote."""
        depends_on_prompt = any(group.depends_on_prompt for group in self.kv_groups)
        return not (self.is_sequential or self.is_encoder or depends_on_prompt)

    @property
    def state_rows(self) -> int:
        """Recurrent states that a running sequence has beside each other: those before and after a step, or one."""
        return state_rows(has_gpu=self.has_gpu, has_native=self.program.has_native)

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence besides its KV cache, whatever its length."""
        return states_bytes(self.states)

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache a token, over all groups."""
        return sum(group.token_bytes for group in self.kv_groups)


class BaseTrunk:
    """The base of ``Trunk``, ``SequentialTrunk`` and ``EncoderTrunk``: a model without its routed experts.

    Args:
        layers: the experts modules and their layers, in the order in which they run.
        is_deterministic: whether a sequence's logits have the same bits whatever else is in its steps.
        pool: threads to compute with; None for the caller's thread alone.
        max_model_len: the requested length, for models whose rotary frequencies depend on it.
    """

    _linears: Mapping[str, nn.Module]  # layers of the module path that adapters can add to, by name
    routers: Mapping[int, RouterWeights]  # by layer
    num_parameters: int = 0  # of the whole model, experts included
    _router_layers: Mapping[str, int]  # layers of experts whose routers they can add to, by the routers' names

    def __init__(
        self,
        model: PreTrainedModel,
        catalog: ExpertCatalog,
        layers: Mapping[ExpertsModule, int],
        is_deterministic: bool,
        *,
        pool: ComputePool | None,
        max_model_len: int | None,
    ):
        self.catalog = catalog
        self._pool = pool or ComputePool(1)
        self._is_deterministic = is_deterministic
        self._model = model
        self._layers = expert_layers(layers, catalog, self._pool)
        self._places = PlaceTables(self._layers.values())
        self.config = model.config.get_text_config()
        self.max_model_len = apply_max_length(model, self.config, max_model_len)  # tokens of the longest sequence
        self.device = model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations of the text; towers may have another."""
        dtype: torch.dtype = text_part(self._model).dtype
        return dtype

    @property
    def model(self) -> PreTrainedModel:
        """The modules of transformers."""
        return self._model

    @property
    def expert_numbers(self) -> Mapping[Any, int]:
        """The layer of each module of routed experts."""
        return {module: layer.number for module, layer in self._layers.items()}

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of each layer that adapters can add to, besides experts, by name."""
        routers = {name: self._model.get_submodule(name).weight.shape for name in self._router_layers}
        return {
            **{name: sizes_of(module) for name, module in self._linears.items()},
            **{name: (inputs, outputs) for name, (outputs, inputs) in routers.items()},
        }

    def prepare_adapter(self, adapter: LoraAdapter) -> None:
        """Make what steps need of an adapter, so that its first step does not wait for it; any thread may call it."""
        if self._pool.kernels is not None:
            for layer in self._layers.values():
                tables_of(adapter).experts(layer.number, len(layer.keys))

    @property
    def runs_ahead(self) -> bool:
        """True if it may begin the step after one of decodes before it is asked for."""
        return False

    def prepare_step(self, chunks: Sequence[SequenceChunk]) -> None:
        """Stop a step that has begun ahead, unless it is of these chunks."""

    def can_pass(self, store: ExpertStore) -> bool:  # noqa: ARG002  others look at it
        """Return whether ``begin_pass`` may be called now."""
        return False

    @property
    def pass_token_bytes(self) -> int:
        """Bytes that a pass of prompts holds for each of its tokens; 0 if there are no passes."""
        return 0

    def begin_pass(
        self,
        steps: Sequence[Sequence[SequenceChunk]],
        kv_cache: KVCache,
        store: ExpertStore,
        prefetcher: Prefetcher | None = None,
        states: StateCache | None = None,
    ) -> PromptPass:
        """Begin a pass of prompts, only if ``can_pass``."""
        raise NotImplementedError

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that steps read, but for the experts."""
        return self._weights

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._weights)

    @property
    def _weights(self) -> list[torch.Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]
