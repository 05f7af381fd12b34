"""TorchBackend: runs any format and any module in torch, one expert at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.backend import Layout, ReadyExperts, SortedRows
from server.kernels.batch_invariant import inherit_batch_invariant, is_batch_invariant
from server.kernels.compute_pool import ComputePool, Task, work_bytes
from server.kernels.expert import ExpertsModule, run_expert, scales_input
from server.kernels.low_rank import ExpertAdditions

# Work per expert below which threads cost more than they save; measured in
# benchmarks/results/2026-11-24-unnamed/threads-and-products-of-few-rows.json.
LEAST_SHARED_BYTES = 384 << 10


class TorchBackend:
    """The reference that every other backend is tested against.

    Args:
        pool: runs several experts at once.
        module: defines how an expert's tensors make its output.
        layout: of the layer's slots.
    """

    def __init__(self, pool: ComputePool, module: ExpertsModule, layout: Layout):
        self._pool, self._module, self._layout = pool, module, layout
        self._results = torch.empty(0)

    def run(self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None]) -> torch.Tensor:
        """See ``ExpertBackend``; each expert's rows are contiguous while it runs."""
        weights, scales = rows.weights, scales_input(self._module)
        outputs = self._compute(rows, batches, between, scales=scales)
        if scales:
            weights = torch.ones_like(weights)
        weighted = outputs.view(*weights.shape, -1) * weights.unsqueeze(-1)  # (tokens, k, hidden)
        return weighted.sum(1).to(rows.hidden_states.dtype)

    def run_unweighted(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, is_exact: bool
    ) -> int:
        """See ``ExpertBackend``; float32 rows are never rounded."""
        del is_exact
        self._results = self._compute(rows, batches, between, scales=False)
        return self._results.data_ptr()

    def _compute(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, scales: bool
    ) -> torch.Tensor:
        """Run each choice's expert on its row, ``(tokens * k, hidden)`` by choice in the dtype of the rows.

        Args:
            scales: multiply each row by the choice's weight first.
        """
        hidden_states, spans = rows.hidden_states, rows.spans
        order = torch.from_numpy(rows.order).to(hidden_states.device)
        inputs = hidden_states[order // rows.top_k]  # (tokens * k, hidden)
        if scales:
            inputs = inputs * rows.weights.flatten()[order].unsqueeze(-1)
        outputs = torch.empty_like(inputs)
        outputs[rows.num_run :] = 0
        start = self._pool.start if _is_worth_sharing(self._layout, rows) else _at_once
        is_deterministic = is_batch_invariant()

        def compute(key: Hashable, span: slice, tensors: Mapping[str, torch.Tensor]) -> None:
            add = None
            if rows.additions is not None:
                of_expert = rows.order[span] // rows.top_k
                add = partial(_add, rows.additions, key, of_expert)
            with inherit_batch_invariant(is_deterministic):
                outputs[span] = run_expert(self._module, tensors, inputs[span], add)

        try:
            for ready in batches:
                for index, key in enumerate(ready.keys):
                    between()
                    start(partial(compute, key, slice(*spans[key]), ready.weights(index)))
                if ready.gives_back:
                    self._pool.finish()
        finally:
            self._pool.finish()
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return outputs[places]


def _add(  # noqa: PLR0917  (called with the last two by position, as ``run_expert`` says)
    additions: ExpertAdditions,
    key: Hashable,
    rows: npt.NDArray[np.int64],
    name: str,
    x: torch.Tensor,
    y: torch.Tensor,
) -> None:
    additions.add(key, name, rows, x, y)


def _is_worth_sharing(layout: Layout, rows: SortedRows) -> bool:
    """Return True if an expert takes longer than passing it to another thread."""
    if not rows.spans:
        return False
    return work_bytes(layout.slot_bytes, len(rows.order) / len(rows.spans)) >= LEAST_SHARED_BYTES


def _at_once(task: Task) -> None:
    task()
