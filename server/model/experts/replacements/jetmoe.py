"""JetMoe's experts, and its attention, which has experts too."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import WeightRenaming, WeightTransform
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.model.experts.replacements.base import ReplacementExperts


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
        query, logits, chosen = self.experts.map(hidden_states)  # (batch, tokens, k, kv_heads * dim)
        key, value = (
            part.view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (batch, kv_heads, tokens, dim)
            for part in self.kv_proj(hidden_states).chunk(2, dim=-1)
        )
        query = query.unflatten(-1, (-1, self.head_dim)).permute(0, 3, 2, 1, 4).flatten(1, 2)  # (batch, heads, ...)
        query, key = self._rotate(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]  # noqa: SLF001
        output, _ = attend(self, query, key, value, scaling=self.scaling, **kwargs)  # (batch, tokens, heads, dim)
        output = output.unflatten(2, (key.shape[1], -1)).transpose(2, 3).flatten(3)  # (batch, tokens, k, ...)
        return self.experts.reduce(output, chosen), None, logits
