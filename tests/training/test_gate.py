"""Losses and noise of the router in training."""

import pytest
import torch

from tests.training.conftest import TINY
from training.architecture import build_model
from training.gate import train_routers, worker


@pytest.fixture
def router():
    torch.manual_seed(0)
    model = build_model(32, dense=False, shape=TINY)
    router = train_routers(model, balance_weight=1.0, z_weight=0.0)[0]
    with torch.no_grad():
        router.weight.normal_()
    worker.losses = []
    worker.generator = torch.Generator().manual_seed(0)
    return router.train()


def loss_of(router, hidden):
    """The loss once the recent use of experts is that of this input."""
    for _ in range(30):
        router(hidden)
        router.end_step()
    return worker.losses[-1].item()


def test_each_layer_has_a_loss_of_its_own():
    model = build_model(32, dense=False, shape=TINY).train()
    routers = train_routers(model, balance_weight=0.01, z_weight=0.001)
    worker.losses = []
    model(input_ids=torch.arange(16)[None])
    assert len(worker.losses) == len(routers) == TINY.num_hidden_layers
    assert all(loss.requires_grad and loss.ndim == 0 for loss in worker.losses)


def test_dense_model_has_no_router():
    assert train_routers(build_model(32, dense=True, shape=TINY), 0.01, 0.001) == []


def test_router_that_sends_all_to_the_same_experts_has_a_higher_balance_loss(router):
    hidden = torch.randn(256, TINY.hidden_size)
    even = loss_of(router, hidden)
    uneven = loss_of(router, hidden[:1].expand(256, -1) * 3)
    assert even == pytest.approx(1.0, abs=0.2)
    assert uneven > 1.5


def test_even_use_has_no_imbalance_and_uneven_use_has(router):
    assert router.imbalance == 0
    loss_of(router, torch.ones(64, TINY.hidden_size) * 3)
    assert router.imbalance > 0.5


def test_noise_moves_choices_only_while_training(router):
    hidden = torch.zeros(256, TINY.hidden_size)  # all logits alike: noise alone decides
    trained = router(hidden)[2]
    first, second = router.eval()(hidden)[2], router(hidden)[2]
    assert len(trained.unique()) == TINY.num_experts
    assert torch.equal(first, second)
    assert len(first.unique()) == TINY.num_experts_per_tok


def test_router_in_eval_mode_agrees_with_the_one_it_was(router):
    hidden = torch.randn(32, TINY.hidden_size)
    logits, scores, chosen = router.eval()(hidden)
    stock = type(router).__mro__[1].forward(router, hidden)
    for ours, theirs in zip((logits, scores, chosen), stock, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_eval_mode_adds_no_loss_and_counts_nothing(router):
    router.eval()(torch.randn(8, TINY.hidden_size))
    assert worker.losses == []
    assert router.counts.sum() == 0
