"""The kernel of routers chooses as the native kernels do, in every way that they know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.kernels.native.structures.layers import Router, RouterKind
from server.kernels.triton.available import has_driver
from server.kernels.triton.router_choice import RouterRule, choose
from server.model.recognition import router_kinds

DEVICE = torch.device("cuda" if has_driver() else "cpu")
EXPERTS, TOP_K, ROWS = 12, 3, 5
PLAIN = RouterRule(RouterKind.SOFTMAX_FIRST, TOP_K, 1, 1, is_by_best=False, is_normalised=True, scale=1.0)
RULES = {
    "softmax": PLAIN,
    "softmax as it is": replace(PLAIN, is_normalised=False, scale=2.5),
    "softmax of the best": replace(PLAIN, kind=RouterKind.TOP_FIRST),
    "sigmoid": replace(PLAIN, kind=RouterKind.SIGMOID),
    "sigmoid of the best": replace(PLAIN, kind=RouterKind.TOP_SIGMOID, is_normalised=False),
    "groups by their two best": replace(PLAIN, kind=RouterKind.SIGMOID, num_groups=4, top_groups=2),
    "groups by their best": replace(PLAIN, num_groups=3, top_groups=1, is_by_best=True),
}


@pytest.mark.parametrize("has_correction", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_experts_and_weights_are_those_of_the_definition(name: str, *, has_correction: bool) -> None:
    rule, random = RULES[name], torch.Generator().manual_seed(0)
    logits = torch.randn((ROWS, EXPERTS), generator=random)
    correction = torch.randn(EXPERTS, generator=random) if has_correction else None
    router = Router(
        kind=rule.kind, top_k=TOP_K, num_groups=rule.num_groups, top_groups=rule.top_groups,
        is_by_best=rule.is_by_best, is_normalised=rule.is_normalised,
    )  # fmt: skip
    wanted, weights = router_kinds.choose(router, correction, logits)
    there = None if correction is None else correction.to(DEVICE)
    found, own = choose(logits.to(DEVICE), there, rule, torch.float32)
    assert torch.equal(found.cpu(), wanted)
    torch.testing.assert_close(own.cpu(), weights * rule.scale)


def test_company_changes_no_bit() -> None:
    logits = torch.randn((ROWS, EXPERTS), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    together, alone = (choose(rows, None, PLAIN, torch.float32) for rows in (logits, logits[2:3]))
    assert torch.equal(together[0][2:3], alone[0])
    assert torch.equal(together[1][2:3], alone[1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_rows_that_are_no_numbers_choose_experts_that_there_are() -> None:
    found, _ = choose(torch.full((1, EXPERTS), torch.nan, device=DEVICE), None, PLAIN, torch.float32)
    assert ((found >= 0) & (found < EXPERTS)).all()
