"""ExpertStrategy: one way to run the experts of a step's layers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from server.kernels.expert import ExpertsModule
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.step_experts import StepExperts


class ExpertStrategy(ABC):
    """Runs the experts of a step's layers, which are modules.

    Args:
        experts: of the step.
    """

    def __init__(self, experts: StepExperts):
        self.experts = experts

    def run(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run each token through its k experts, and return the weighted sums, ``(tokens, hidden)``.

        Choices beyond the last expert (some models route to "no expert") add nothing.

        Args:
            hidden_states: ``(tokens, hidden)``.
            top_k_index: ``(tokens, k)``, integer.
            top_k_weights: ``(tokens, k)``.
        """
        layer = self.experts.layers[module]
        if not len(top_k_index):  # the text's experts in a step of nothing but an image with experts of its own
            self.experts.record.note_chosen(layer.number, np.zeros(top_k_index.shape, np.int64))
            return torch.zeros_like(hidden_states)
        return self.run_layer(layer, hidden_states, top_k_index, top_k_weights)

    @abstractmethod
    def run_layer(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run one layer on a token or more; as ``run``."""
