"""The routed experts of a step, from the store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertStore, Lease, Phase, Prefetcher, Weights
from server.kernels.batch_invariant import is_batch_invariant, keep_arithmetic
from server.kernels.expert import ExpertsModule, run_expert, scales_input
from server.kernels.pool import ComputePool, Task, work_bytes

from .routing import LayerRun
from .stalls import Stall
from .step import ExpertCost

LEAST_SHARED_BYTES = 384 << 10  # of an expert, below which threads cost more than they bring (docs/log.md)


class StepExperts:
    """The experts of all layers in one step, and what of them is worth knowing afterwards.

    Args:
        layers: the experts modules and their layers.
        pool: runs experts side by side.
        prefetcher: is told what was chosen once a layer's own reads are under way, and before each expert runs whether
            the disk has time for the next layer's is asked again.
    """

    def __init__(
        self,
        store: ExpertStore,
        layers: Mapping[ExpertsModule, int],
        phase: Phase,
        pool: ComputePool,
        prefetcher: Prefetcher | None = None,
    ):
        self._store, self._layers, self._phase, self._pool = store, layers, phase, pool
        self._prefetcher = prefetcher
        self.cost = ExpertCost()
        self.routing: dict[int, npt.NDArray[np.int64]] = {}  # by layer (tokens, k)
        self.runs: list[LayerRun] = []
        self.stalls: list[Stall] = []

    def run(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each token through its k experts, weighted and summed: ``(tokens, hidden)``.

        Rows are sorted by expert, so that each expert is leased once and its rows lie together. Results are summed in
        top-k order, so that the order in which experts became ready changes no bit. Choices beyond the last expert
        (some models route to "no expert") add nothing.

        Args:
            hidden_states: ``(tokens, hidden)``.
            top_k_index: ``(tokens, k)``, integer.
            top_k_weights: ``(tokens, k)``.
        """
        layer, (tokens, k) = self._layers[module], top_k_index.shape
        self.routing[layer] = top_k_index.cpu().numpy()
        if not tokens:  # a step of nothing but an image has none for the text's experts, where it has its own
            return torch.zeros_like(hidden_states)
        choices = top_k_index.flatten()  # (tokens * k,)
        order = choices.argsort(stable=True)  # places of choices, expert after expert
        counts = torch.bincount(choices, minlength=module.num_experts).tolist()[: module.num_experts]
        ends = list(accumulate(counts))
        rows = hidden_states[order // k]  # (tokens * k, hidden)
        if scales_input(module):
            rows = rows * top_k_weights.flatten()[order].unsqueeze(-1)
            top_k_weights = torch.ones_like(top_k_weights)
        outputs = torch.empty_like(rows)
        outputs[ends[-1] :] = 0  # of choices beyond the last expert
        wanted = {expert: count for expert, count in enumerate(counts) if count}
        start = self._pool.start if wanted and self._is_worth_sharing(layer, len(order) / len(wanted)) else _at_once
        is_deterministic = is_batch_invariant()

        def compute(expert: int, weights: Weights) -> None:
            span = slice(ends[expert] - counts[expert], ends[expert])
            with keep_arithmetic(is_deterministic):
                outputs[span] = run_expert(module, weights, rows[span])

        with self._store.lease(layer, wanted, self._phase) as lease:
            if self._prefetcher is not None:
                self._prefetcher.observe(layer, self.routing[layer], hidden_states)
            try:
                for expert, weights in lease:
                    if self._prefetcher is not None:
                        self._prefetcher.ask()
                    start(partial(compute, expert, weights))
                    if lease.gives_back:
                        self._pool.finish()
            finally:
                self._pool.finish()
        self._note(module, layer, lease)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        weighted = outputs[places].view(tokens, k, -1) * top_k_weights.unsqueeze(-1)  # (tokens, k, hidden)
        return weighted.sum(1).to(hidden_states.dtype)

    def _note(self, module: ExpertsModule, layer: int, lease: Lease) -> None:
        missed = {key.expert: self._store.catalog.read_bytes(key) for key in lease.missed}
        cost = ExpertCost(lease.num_lookups, len(missed), lease.stall_seconds, sum(missed.values()))
        self.runs.append(LayerRun(layer, self.routing[layer], module.num_experts, cost, missed))
        self.cost.add(cost)
        if cost.stall_seconds:
            self.stalls.append(
                Stall(layer, lease.stalled_from, lease.stalled_to, cost.stall_seconds, cost.num_misses, cost.bytes_read)
            )

    def _is_worth_sharing(self, layer: int, rows_per_expert: float) -> bool:
        """Whether an expert takes longer than it takes to hand it to another thread."""
        nbytes = self._store.catalog.layers[layer].layout.slot_bytes
        return work_bytes(nbytes, rows_per_expert) >= LEAST_SHARED_BYTES


def _at_once(task: Task) -> None:
    task()
