"""Routed experts of one layer, from the store."""

from __future__ import annotations

from itertools import accumulate

import torch

from expert_store import ExpertStore, Phase, Prefetcher
from server.kernels.expert import ExpertsModule, run_expert

from .step import ExpertCost


def run_paged_experts(
    module: ExpertsModule,
    layer: int,
    store: ExpertStore,
    phase: Phase,
    cost: ExpertCost,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    prefetcher: Prefetcher | None = None,
) -> torch.Tensor:
    """Each token through its k experts, weighted and summed: ``(tokens, hidden)``.

    Rows are sorted by expert, so that each expert is leased once and its rows lie together. Results are summed in top-k
    order, so that the order in which experts became ready changes no bit. Choices beyond the last expert (some models
    route to "no expert") add nothing.

    Args:
        cost: is added to.
        hidden_states: ``(tokens, hidden)``.
        top_k_index: ``(tokens, k)``, integer.
        top_k_weights: ``(tokens, k)``.
        prefetcher: is told what was chosen once this layer's own reads are under way, and before each expert runs
            whether the disk has time for the next layer's is asked again.
    """
    tokens, k = top_k_index.shape
    choices = top_k_index.flatten()  # (tokens * k,)
    order = choices.argsort(stable=True)  # places of choices, expert after expert
    counts = torch.bincount(choices, minlength=module.num_experts).tolist()[: module.num_experts]
    ends = list(accumulate(counts))
    rows = hidden_states[order // k]  # (tokens * k, hidden)
    outputs = torch.empty_like(rows)
    outputs[ends[-1] :] = 0  # of choices beyond the last expert
    with store.lease(layer, {expert: count for expert, count in enumerate(counts) if count}, phase) as lease:
        if prefetcher is not None:
            prefetcher.observe(layer, top_k_index.cpu().numpy(), hidden_states)
        for expert, weights in lease:
            if prefetcher is not None:
                prefetcher.ask()
            span = slice(ends[expert] - counts[expert], ends[expert])
            outputs[span] = run_expert(module, weights, rows[span])
    cost.num_lookups += lease.num_lookups
    cost.num_misses += lease.num_misses
    cost.stall_seconds += lease.stall_seconds
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    weighted = outputs[places].view(tokens, k, -1) * top_k_weights.unsqueeze(-1)  # (tokens, k, hidden)
    return weighted.sum(1).to(hidden_states.dtype)
