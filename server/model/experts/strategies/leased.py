"""LeasedExperts: runs each layer under a lease of its own, once the host knows what the layer has chosen."""

from __future__ import annotations

import torch

from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.strategies.strategy import ExpertStrategy


class LeasedExperts(ExpertStrategy):
    """Leases the experts that a layer has chosen, and runs them as they arrive.

    It suits every model, device and step.
    """

    def run_layer(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        chosen = top_k_index.cpu().numpy()
        with self.experts.leased(layer, chosen, hidden_states, top_k_weights) as (rows, lease):
            return layer.backend.run(rows, lease.batches(), self.experts.request)
