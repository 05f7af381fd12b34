"""Routed experts of one layer, from the store."""

from __future__ import annotations

import torch

from expert_store import ExpertStore, Phase, Prefetcher
from server.kernels.expert import ExpertsModule, run_expert


def run_paged_experts(
    module: ExpertsModule,
    layer: int,
    store: ExpertStore,
    phase: Phase,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    prefetcher: Prefetcher | None = None,
) -> torch.Tensor:
    """Each token through its k experts, weighted and summed: ``(tokens, hidden)``.

    Rows are grouped by expert, so that each expert is leased once. Results wait in the place of their choice and are
    summed in top-k order, so that the order in which experts became ready changes no bit. Choices beyond the last
    expert (some models route to "no expert") add nothing.

    Args:
        hidden_states: ``(tokens, hidden)``.
        top_k_index: ``(tokens, k)``, integer.
        top_k_weights: ``(tokens, k)``.
        prefetcher: is told what was chosen once this layer's own reads are under way, and before each expert runs
            whether the disk has time for the next layer's is asked again.
    """
    tokens, k = top_k_index.shape
    choices = top_k_index.flatten()  # (tokens * k,)
    order = choices.argsort(stable=True)
    counts = torch.bincount(choices, minlength=module.num_experts).tolist()
    rows: dict[int, torch.Tensor] = {}
    start = 0
    for expert, count in enumerate(counts[: module.num_experts]):
        if count:
            rows[expert] = order[start : start + count]
            start += count
    outputs = hidden_states.new_zeros((tokens * k, hidden_states.shape[-1]))
    with store.lease(layer, {expert: len(places) for expert, places in rows.items()}, phase) as lease:
        if prefetcher is not None:
            prefetcher.observe(layer, top_k_index.cpu().numpy(), hidden_states)
        for expert, weights in lease:
            if prefetcher is not None:
                prefetcher.ask()
            places = rows[expert]
            outputs[places] = run_expert(module, weights, hidden_states[places // k])
    weighted = outputs.view(tokens, k, -1) * top_k_weights.unsqueeze(-1)  # (tokens, k, hidden)
    return weighted.sum(1).to(hidden_states.dtype)
