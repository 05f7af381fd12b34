"""A router's kind is found by trials that tell all kinds apart, and ties prove nothing."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from server.kernels.native.structures.layers import Router, RouterKind
from server.kernels.native.structures.matrices import Matrix
from server.model.blocks.capture import Routing
from server.model.blocks.errors import UnsupportedLayerError
from server.model.experts.router import RouterWeights
from server.model.hooks import current_hooks
from server.model.recognition.hash_router import find_hash_router
from server.model.recognition.router_kinds import choices_agree, choose, find_router_kind, run_trial

HIDDEN, EXPERTS, TOP_K = 32, 16, 4
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = [
    *product([RouterKind.SOFTMAX_FIRST, RouterKind.SIGMOID], [0, 1], [False, True], [1, 4], [1.0, 2.5]),
    (RouterKind.TOP_FIRST, 0, False, 1, 1.0),
]


class Block(nn.Module):
    """An MLP whose router computes in the dtype of its rows, and chooses as a ``Router`` says."""

    def __init__(self, router: Router, weights: RouterWeights, act: Any = None):
        super().__init__()
        self.router, self.weights, self.act = router, weights, act
        self.n_group, self.topk_group = router.num_groups, router.top_groups

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(0, 1)
        logits = flat @ self.weights.weight.to(flat.dtype).T
        logits = logits if self.weights.bias is None else logits + self.weights.bias.to(flat.dtype)
        correction = None if self.weights.correction is None else self.weights.correction.double()
        chosen, weights = choose(self.router, correction, logits.double() if self.act is None else self.act(logits))
        weights = (weights * self.router.scale).to(flat.dtype)
        return current_hooks().run_experts(self, flat, chosen, weights)  # type: ignore[arg-type]


def router_of(kind: RouterKind, is_normalised: int, num_groups: int = 1, scale: float = 1.0) -> Router:
    matrix = Matrix(outputs=EXPERTS, inputs=HIDDEN)
    return Router(matrix, None, None, None, kind, TOP_K, num_groups, max(1, num_groups // 2), is_normalised, scale)


def weights_of(*, is_corrected: bool = False, factor: float = 1.0) -> RouterWeights:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn((EXPERTS, HIDDEN), generator=random).bfloat16().float() * factor
    correction = torch.randn(EXPERTS, generator=random) * 0.1 if is_corrected else None
    return RouterWeights(weight, None, correction, torch.sigmoid)


def find(block: Block, dtype: torch.dtype) -> Router:
    correction = None if block.weights.correction is None else block.weights.correction.double()
    unknown = Router(block.router.matrix, None, None, None, 0, TOP_K, 1, 1, 0, 1.0)
    return find_router_kind(unknown, block, correction, run_trial(block, block.weights, dtype), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "is_normalised", "is_corrected", "num_groups", "scale"), KINDS)
def test_the_router_that_is_found_weights_experts_alike(
    kind: RouterKind, is_normalised: int, is_corrected: bool, num_groups: int, scale: float, dtype: torch.dtype
) -> None:
    wanted = router_of(kind, is_normalised, num_groups, scale)
    block = Block(wanted, weights_of(is_corrected=is_corrected))
    found = find(block, dtype)
    correction = None if block.weights.correction is None else block.weights.correction.double()
    logits = torch.randn((50, EXPERTS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (chosen, weights), (own_chosen, own) = (choose(each, correction, logits) for each in (wanted, found))
    assert torch.equal(own_chosen, chosen)
    torch.testing.assert_close(own, weights)
    assert found.scale == pytest.approx(scale, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_by_best", [0, 1])
def test_trials_show_whether_groups_are_chosen_by_their_best(is_by_best: int, dtype: torch.dtype) -> None:
    wanted = router_of(RouterKind.SOFTMAX_FIRST, 0, num_groups=4)
    wanted.is_by_best = is_by_best
    assert find(Block(wanted, weights_of()), dtype).is_by_best == is_by_best


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("is_normalised", [0, 1])
def test_flat_and_peaked_routers_show_whether_weights_are_normalised(is_normalised: int, factor: float) -> None:
    block = Block(router_of(RouterKind.SOFTMAX_FIRST, is_normalised), weights_of(factor=factor))
    assert find(block, torch.bfloat16).is_normalised == is_normalised


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_router_of_zeros_is_refused(dtype: torch.dtype) -> None:
    block = Block(router_of(RouterKind.SOFTMAX_FIRST, 1), weights_of(factor=0.0))
    with pytest.raises(UnsupportedLayerError, match="same scores"):
        find(block, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", [lambda x: x.double() * 1.1, lambda x: x.double().tanh(), lambda x: -x.double()])
def test_a_router_that_changes_its_logits_first_is_refused(act: Any, dtype: torch.dtype) -> None:
    block = Block(router_of(RouterKind.SOFTMAX_FIRST, 1), weights_of(), act)
    with pytest.raises(UnsupportedLayerError, match="another way"):
        find(block, dtype)


@pytest.mark.parametrize(
    ("num_groups", "top_groups"), [(0, 1), (-4, 1), (3, 1), (16, 8), (2**31, 1), (4, 0), (4, 5), (8, 1), (1, 2)]
)
def test_groups_that_experts_cannot_have_are_refused(num_groups: int, top_groups: int) -> None:
    block = Block(router_of(RouterKind.SIGMOID, 1), weights_of())
    block.n_group, block.topk_group = num_groups, top_groups
    with pytest.raises(UnsupportedLayerError, match=f"from {top_groups} of {num_groups} groups of {EXPERTS}"):
        find(block, torch.float32)


@pytest.mark.parametrize(
    ("num_same", "num_steady", "agree"),
    [
        (17, 17, True),
        (16, 17, True),
        (15, 17, False),
        (6, 7, True),
        (5, 7, False),
        (1, 2, True),
        (0, 1, False),
        (0, 0, True),
    ],
)
def test_of_few_steady_rows_one_may_choose_other_experts(num_same: int, num_steady: int, agree: bool) -> None:
    assert choices_agree(num_same, num_steady, torch.bfloat16) is agree


class TableBlock(Block):
    """An MLP whose router takes the experts of tokens from a table."""

    def __init__(self, router: Router, weights: RouterWeights, table: torch.Tensor):
        super().__init__(router, weights)
        self.register_buffer("table", table)

    def forward(self, rows: torch.Tensor, input_ids: torch.Tensor | None = None) -> torch.Tensor:
        assert input_ids is not None
        flat = rows.flatten(0, 1)
        chosen, weights = choose(
            self.router, None, (flat @ self.weights.weight.T).double(), self.table[input_ids.flatten()]
        )
        return current_hooks().run_experts(self, flat, chosen, weights.to(flat.dtype))  # type: ignore[arg-type]


def test_a_table_of_experts_leaves_the_weights_to_logits() -> None:
    wanted = router_of(RouterKind.SQRT_SOFTPLUS, 1)
    random = torch.Generator().manual_seed(2)
    table = torch.stack([torch.randperm(EXPERTS, generator=random)[:TOP_K] for _ in range(8)])
    block = TableBlock(wanted, weights_of(), table)
    trial = run_trial(block, block.weights, torch.float32, table=table)
    unknown = Router(wanted.matrix, None, None, None, 0, TOP_K, 1, 1, 0, 1.0)
    found = find_router_kind(unknown, block, None, trial, torch.float32)
    assert (found.kind, found.is_normalised) == (RouterKind.SQRT_SOFTPLUS, 1)
    assert found.scale == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_table_is_known_by_what_experts_got(wrong: bool) -> None:
    block = TableBlock(router_of(RouterKind.SIGMOID, 1), weights_of(), torch.arange(8 * TOP_K).view(8, TOP_K) % EXPERTS)
    block.weight = nn.Parameter(block.weights.weight)
    chosen = block.table[torch.tensor([3, 1])]
    routing = Routing(torch.zeros(2, HIDDEN), chosen.flip(0) if wrong else chosen, torch.ones(2, TOP_K))
    found = find_hash_router(block, "mlp.gate", EXPERTS, [3, 1], routing)
    assert (found is None) == wrong
    assert found is None or found.weights.names == {"weight": "mlp.gate.weight"}
