"""The torch backend: its results do not depend on the order of batches."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import silu

from server.kernels import torch_backend
from server.kernels.backend import SortedRows
from server.kernels.compute_pool import ComputePool
from server.kernels.torch_backend import TorchBackend

TOKENS, TOP_K, EXPERTS, HIDDEN, INTERMEDIATE = 5, 3, 6, 8, 4
LAYOUT: Any = SimpleNamespace(slot_bytes=4096, parameters=(), offsets={})


class Module:
    """SwiGLU experts."""

    num_experts = EXPERTS
    has_gate, has_bias, has_post_expert_norm, is_transposed = True, False, False, False
    scales_input = False

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return silu(gate) * up


@dataclass
class Ready:
    """A batch of the experts in ``WEIGHTS``."""

    keys: Sequence[int]
    weights_of: dict[int, dict[str, torch.Tensor]]
    gives_back: bool = False
    addresses: Any = None

    def weights(self, index: int) -> dict[str, torch.Tensor]:
        return self.weights_of[self.keys[index]]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ComputePool]:
    monkeypatch.setattr(torch_backend, "LEAST_SHARED_BYTES", 0)
    pool = ComputePool(request.param)
    yield pool
    pool.close()


@pytest.fixture
def weights() -> dict[int, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {
        expert: {
            "gate_up_proj": torch.randn(2 * INTERMEDIATE, HIDDEN, generator=draw),
            "down_proj": torch.randn(HIDDEN, INTERMEDIATE, generator=draw),
        }
        for expert in range(EXPERTS)
    }


def rows_of(chosen: npt.NDArray[np.int64]) -> SortedRows:
    """Random rows, routed to some experts."""
    draw = torch.Generator().manual_seed(1)
    choices = chosen.ravel()
    order = choices.argsort(kind="stable")
    ends = choices[order].searchsorted(np.arange(EXPERTS), side="right").tolist()
    spans = {e: (start, end) for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) if start < end}
    hidden = torch.randn(len(chosen), HIDDEN, generator=draw)
    return SortedRows(hidden, torch.rand(chosen.shape, generator=draw), order, spans)


def choose(seed: int, most: int = EXPERTS) -> npt.NDArray[np.int64]:
    rng = random.Random(seed)
    return np.array([rng.sample(range(most), TOP_K) for _ in range(TOKENS)])


def nothing() -> None:
    pass


def test_each_token_goes_through_its_experts(pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]) -> None:
    chosen = choose(0)
    rows = rows_of(chosen)
    output = TorchBackend(pool, Module(), LAYOUT).run(rows, [Ready(list(rows.spans), weights)], nothing)
    for token, experts in enumerate(chosen.tolist()):
        row, expected = rows.hidden_states[token], torch.zeros(HIDDEN)
        for place, expert in enumerate(experts):
            gate, up = (weights[expert]["gate_up_proj"] @ row).chunk(2)
            expected += weights[expert]["down_proj"] @ (silu(gate) * up) * rows.weights[token, place]
        torch.testing.assert_close(output[token], expected)


def test_the_order_of_arrival_changes_no_bit(pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]) -> None:
    rows, outputs = rows_of(choose(1)), []
    for seed in range(4):
        keys = list(rows.spans)
        random.Random(seed).shuffle(keys)
        batches = [Ready(keys[:seed], weights), Ready(keys[seed:], weights)]
        outputs.append(TorchBackend(pool, Module(), LAYOUT).run(rows, batches, nothing))
    assert all(torch.equal(outputs[0], output) for output in outputs)


def test_choices_of_no_expert_add_nothing(pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]) -> None:
    chosen = choose(2, EXPERTS + 3)
    rows = rows_of(chosen)
    assert rows.num_run == (chosen < EXPERTS).sum()
    output = TorchBackend(pool, Module(), LAYOUT).run(rows, [Ready(list(rows.spans), weights)], nothing)
    others = rows_of(np.where(chosen < EXPERTS, chosen, 0))
    muted = torch.where(torch.from_numpy(chosen) < EXPERTS, others.weights, 0)
    others = SortedRows(others.hidden_states, muted, others.order, others.spans)
    ready = [Ready(list(others.spans), weights)]
    torch.testing.assert_close(output, TorchBackend(pool, Module(), LAYOUT).run(others, ready, nothing))


def test_unweighted_results_add_up_to_the_weighted_ones(
    pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    rows, backend = rows_of(choose(6)), TorchBackend(pool, Module(), LAYOUT)
    ready = [Ready(list(rows.spans), weights)]
    address = backend.run_unweighted(rows, ready, nothing, is_exact=True)
    floats = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    results = torch.from_numpy(np.ctypeslib.as_array(floats, (TOKENS, TOP_K, HIDDEN)))
    assert torch.equal((results * rows.weights.unsqueeze(-1)).sum(1), backend.run(rows, ready, nothing))


def test_rows_without_an_expert_give_zeros(pool: ComputePool) -> None:
    rows = rows_of(np.full((2, TOP_K), EXPERTS))
    assert not TorchBackend(pool, Module(), LAYOUT).run(rows, [], nothing).any()


def test_weights_are_used_before_the_next_batch_may_evict_them(
    pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    rows = rows_of(choose(3))
    wanted = TorchBackend(pool, Module(), LAYOUT).run(rows, [Ready(list(rows.spans), weights)], nothing)

    def waves() -> Iterator[Ready]:
        for key in rows.spans:
            lent = {key: {name: tensor.clone() for name, tensor in weights[key].items()}}
            yield Ready([key], lent, gives_back=True)
            for tensor in lent[key].values():
                tensor.fill_(torch.nan)  # another expert's bytes

    assert torch.equal(TorchBackend(pool, Module(), LAYOUT).run(rows, waves(), nothing), wanted)


def test_the_callback_runs_before_each_expert(weights: dict[int, dict[str, torch.Tensor]]) -> None:
    rows, moments = rows_of(choose(4)), []
    batches = [Ready(list(rows.spans), weights)]
    TorchBackend(ComputePool(1), Module(), LAYOUT).run(rows, batches, lambda: moments.append(1))
    assert len(moments) == len(rows.spans)


def test_a_failure_while_waiting_is_raised_after_all_tasks_ended(
    pool: ComputePool, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    rows = rows_of(choose(5))

    def batches() -> Iterator[Ready]:
        yield Ready(list(rows.spans)[:2], weights)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        TorchBackend(pool, Module(), LAYOUT).run(rows, batches(), nothing)
    assert pool._num_started == 0
