"""Experts of Switch Transformers and NLLB: separate modules without a gate, with a limited capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming, WeightTransform

from server.model.experts.replacements.base import ReplacementExperts


class PlainExperts(ReplacementExperts):
    """Experts of two matrices with an activation between them.

    Args:
        parameters: of all experts, by the names of ``run_expert``.
        act_fn: activation between the matrices.
    """

    has_gate = False

    def __init__(self, parameters: Mapping[str, torch.Tensor], act_fn: Callable[..., Any]):
        nn.Module.__init__(self)
        self.num_experts = len(parameters["down_proj"])
        self.act_fn = act_fn
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor))


class SwitchExperts(PlainExperts):
    """Mirrors ``SwitchTransformersExperts``: one expert a token, or none beyond the expert's capacity.

    Its router counts an expert's tokens in each sequence and drops those beyond ``expert_capacity``, which is part of
    the model's definition (Switch Transformers, arXiv 2101.03961, section 2.2).
    """

    def __init__(self, original: Any):
        experts = [original[f"expert_{number}"] for number in range(original.num_experts)]
        parameters = {
            "up_proj": torch.stack([expert.wi.weight for expert in experts]),
            "down_proj": torch.stack([expert.wo.weight for expert in experts]),
        }
        super().__init__(parameters, experts[0].act)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run experts: ``(tokens, hidden)`` to the same shape.

        Args:
            top_k_index: ``(tokens, 1, experts)``, 1 for the chosen expert; all zero for a dropped token.
            top_k_weights: ``(tokens, 1)``.
        """
        is_dropped = top_k_index.sum(-1) == 0
        index = top_k_index.argmax(-1).masked_fill(is_dropped, self.num_experts)
        return super().forward(hidden_states, index, top_k_weights)

    @staticmethod
    def conversions() -> list[WeightTransform]:
        return [
            WeightRenaming(r"experts\.expert_(\d+)\.", r"experts.\1."),
            WeightConverter(["experts.*.wi.weight"], "experts.up_proj", operations=[MergeModulelist(dim=0)]),
            WeightConverter(["experts.*.wo.weight"], "experts.down_proj", operations=[MergeModulelist(dim=0)]),
        ]


class NllbExperts(PlainExperts):
    """Two experts a token, weighted by the router, as in fairseq and in transformers up to 4.57.

    ``NllbMoeExperts`` of transformers 5.25 takes the router's mask of first choices, of zeros and ones, for indices of
    experts, so that only the first two experts ever run.
    """

    has_bias = True

    def __init__(self, original: Any):
        experts = [original[f"expert_{number}"] for number in range(original.num_experts)]
        parameters = {
            "up_proj": torch.stack([expert.fc1.weight for expert in experts]),
            "up_proj_bias": torch.stack([expert.fc1.bias for expert in experts]),
            "down_proj": torch.stack([expert.fc2.weight for expert in experts]),
            "down_proj_bias": torch.stack([expert.fc2.bias for expert in experts]),
        }
        super().__init__(parameters, experts[0].act)
        self._kept = 1 - float(original.moe_token_dropout)  # share of outputs that training does not drop at random

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run experts: ``(tokens, hidden)`` to the same shape.

        Args:
            top_k_index: the router's mask of first choices; not used, since the weights contain it.
            top_k_weights: ``(tokens, experts)``; zero for all experts but two, or fewer beyond an expert's capacity.
        """
        del top_k_index
        weights, index = top_k_weights.topk(2, dim=-1)
        return super().forward(hidden_states, index.masked_fill(weights == 0, self.num_experts), weights * self._kept)

    @staticmethod
    def conversions() -> list[WeightTransform]:
        return [
            WeightRenaming(r"experts\.expert_(\d+)\.", r"experts.\1."),
            *(
                WeightConverter([f"experts.*.{theirs}"], f"experts.{ours}", operations=[MergeModulelist(dim=0)])
                for theirs, ours in (
                    ("fc1.weight", "up_proj"),
                    ("fc1.bias", "up_proj_bias"),
                    ("fc2.weight", "down_proj"),
                    ("fc2.bias", "down_proj_bias"),
                )
            ),
        ]
