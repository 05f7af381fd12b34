"""The comparison of routers: its losses, its measurements and its page."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from server.model.routers.top_k import TopKRouter
from training.router_data import Task
from training.router_training import VARIANTS, Variant, balance_loss, train, z_loss
from training.routers_page import write_page

SWITCH = next(variant for variant in VARIANTS if variant.name == "Switch, capacity 1.25")


@pytest.fixture
def task() -> Task:
    """Return images whose label is the brighter half."""
    torch.manual_seed(0)
    images = torch.rand(200, 1, 8, 8)
    images[:, :, :, 4:] *= 0.5
    labels = (torch.arange(200) % 2).long()
    images[labels == 1] = images[labels == 1].flip(-1)
    return Task("halves", images[40:], labels[40:], (images[:40], labels[:40]), ["left", "right"])


def test_an_even_router_has_a_balance_loss_of_one() -> None:
    router = TopKRouter(4, 4, 1)
    router.gate.weight.data = torch.eye(4)
    dispatch = router(8 * torch.eye(4).repeat(3, 1), torch.ones(12, dtype=torch.bool))
    assert balance_loss(dispatch, 4).item() == pytest.approx(1.0)
    uneven = router(8 * torch.eye(4)[:1].repeat(12, 1), torch.ones(12, dtype=torch.bool))
    assert balance_loss(uneven, 4).item() > 3.9


def test_the_z_loss_is_the_square_of_the_log_partition() -> None:
    router = TopKRouter(4, 4, 1)
    router.gate.weight.data.zero_()
    dispatch = router(torch.ones(5, 4), torch.ones(5, dtype=torch.bool))
    assert z_loss(dispatch).item() == pytest.approx(math.log(4) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [SWITCH, VARIANTS[-1]], ids=lambda variant: variant.name)
def test_an_encoder_learns_and_its_results_make_a_page(variant: Variant, task: Task, tmp_path: Path) -> None:
    _, result = train(variant, task, 16, steps=16)
    assert result.accuracy > 0.9
    assert result.curve[-1][1] < result.curve[0][1]
    (tmp_path / "images").mkdir()
    write_page({"digits": [asdict(replace(result, dropped=0.125))]}, tmp_path)
    assert f"| {variant.name} | " in (tmp_path / "routers.md").read_text()
    assert "12.5 %" in (tmp_path / "routers.md").read_text()
    assert (tmp_path / "images/routers-digits.svg").stat().st_size > 1000


def test_dropped_tokens_of_a_router_with_a_capacity_are_counted(task: Task) -> None:
    assert 0 < train(SWITCH, task, 16, steps=2)[1].dropped < 1
