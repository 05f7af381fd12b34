"""JetMoe's experts, and its attention, which has experts too."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.core_model_loading import WeightRenaming, WeightTransform
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.device import is_gpu
from server.model.experts.replacements.base import ReplacementExperts

MOST_ROWS = 64  # of a step on a GPU whose rows go through the matrices of all experts


class PairedExperts(ReplacementExperts):
    """Joins the two ``JetMoeParallelExperts`` of a layer into experts of two matrices."""

    def __init__(self, original: Any):
        super().__init__(original.input_linear.weight, original.output_linear.weight, original.activation)

    @staticmethod
    def conversions() -> list[WeightTransform]:
        return [
            WeightRenaming(r"mlp\.input_linear\.weight", "mlp.experts.gate_up_proj"),
            WeightRenaming(r"mlp\.output_linear\.weight", "mlp.experts.down_proj"),
        ]


class PairedMoe(nn.Module):
    """Mirrors ``JetMoeMoE``."""

    def __init__(self, original: Any):
        super().__init__()
        self.router = original.router
        self.experts = PairedExperts(original)
        self.bias: nn.Parameter = original.bias  # (hidden,)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, hidden)`` to the same shape."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits, index = self.router.layer(rows).float().topk(self.router.top_k, dim=1)  # (tokens, k)
        output: torch.Tensor = self.experts(rows, index, logits.softmax(1).type_as(rows))
        return output.view(hidden_states.shape) + self.bias


class SharedKeysAttention(nn.Module):
    """Mirrors ``JetMoeAttention``, whose experts make queries and outputs; these experts stay in the trunk.

    The queries of all chosen experts attend to the same keys, which the original copies for each expert. Here each key
    head occurs once, with its queries of all experts next to each other, so that the KV cache has no copies.

    On a GPU few rows are multiplied by the matrices of all experts, as the original reads on the host which rows are
    whose: it would wait for the device in each layer, and a CUDA graph can't do that.
    """

    def __init__(self, original: Any):
        super().__init__()
        self.config, self.layer_idx, self.scaling = original.config, original.layer_idx, original.scaling
        self.experts, self.kv_proj, self.head_dim = original.experts, original.kv_proj, int(original.head_dim)
        self._rotate = import_module(type(original).__module__).apply_rotary_pos_emb
        for linear in (self.experts.input_linear, self.experts.output_linear):
            linear.share_read = self.experts.top_k / linear.num_experts  # share of its weights that one token reads

    def forward(
        self, hidden_states: torch.Tensor, *, position_embeddings: tuple[torch.Tensor, torch.Tensor], **kwargs: Any
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        """Return output of the input's shape ``(batch, tokens, hidden)``, None for weights, and the router's logits."""
        batch, tokens, _ = hidden_states.shape
        has_all = is_gpu(hidden_states.device) and batch * tokens <= MOST_ROWS
        map_rows = self._by_all if has_all else self.experts.map
        query, logits, chosen = map_rows(hidden_states)  # (batch, tokens, k, kv_heads * dim)
        key, value = (
            part.view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (batch, kv_heads, tokens, dim)
            for part in self.kv_proj(hidden_states).chunk(2, dim=-1)
        )
        query = query.unflatten(-1, (-1, self.head_dim)).permute(0, 3, 2, 1, 4).flatten(1, 2)  # (batch, heads, ...)
        query, key = self._rotate(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]  # noqa: SLF001
        output, _ = attend(self, query, key, value, scaling=self.scaling, **kwargs)  # (batch, tokens, heads, dim)
        output = output.unflatten(2, (key.shape[1], -1)).transpose(2, 3).flatten(3)  # (batch, tokens, k, ...)
        return self._sum_of_all(output, *chosen) if has_all else self.experts.reduce(output, chosen), None, logits

    def _by_all(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return queries and logits as ``JetMoeMoA.map``, and the chosen experts ``(tokens, k)`` with their weights."""
        logits = self.experts.router.layer(hidden_states.flatten(0, 1)).float()
        best, index = logits.topk(self.experts.top_k, dim=1)
        query = _products(hidden_states.flatten(0, 1), self.experts.input_linear.weight, index)
        return query.view(*hidden_states.shape[:2], *query.shape[1:]), logits, (index, best.softmax(1).type_as(query))

    def _sum_of_all(self, output: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the sum of the experts' outputs as ``JetMoeMoA.reduce``."""
        rows = output.flatten(0, 2)  # (tokens * k, kv_heads * dim)
        parts = _products(rows, self.experts.output_linear.weight, index.view(-1, 1)).view(*index.shape, -1)
        summed: torch.Tensor = (parts * weights.unsqueeze(-1)).sum(1) + self.experts.bias
        return summed.view(*output.shape[:2], -1)


def _products(rows: torch.Tensor, weight: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the products of rows with the matrices of some experts, ``(rows, k, outputs)``.

    Args:
        weight: of all experts, ``(experts, outputs, inputs)``.
        index: ``(rows, k)``.
    """
    every = F.linear(rows, weight.flatten(0, 1)).view(len(rows), *weight.shape[:2])  # (rows, experts, outputs)
    return every.gather(1, index.unsqueeze(-1).expand(-1, -1, weight.shape[1]))
