"""Steps of Muon, and the orthogonalisation of matrices."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from training.muon import Muon, orthogonalize

pytestmark = pytest.mark.slow


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def step(pool, param, gradient, *, blocks=1, lr=1.0, weight_decay=0.0):
    """The change that one step of Muon makes."""
    param.muon_blocks = blocks
    param.grad = gradient
    before = param.detach().clone()
    Muon([param], lr=lr, momentum=0.95, weight_decay=weight_decay, pool=pool).step()
    return param.detach() - before


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_orthogonalizing_keeps_singular_vectors():
    left, _, right = torch.linalg.svd(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))
    matrix = left @ torch.diag(torch.linspace(1.0, 2.0, 12)) @ right
    turned = left.mT @ orthogonalize(matrix[None])[0] @ right.mT
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)


def test_step_is_near_orthogonal(pool):
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(16, 16, generator=generator))
    change = step(pool, param, torch.randn(16, 16, generator=generator) * 100)
    assert 0.6 < torch.linalg.svdvals(change).median() < 1.3


def test_tall_matrix_moves_by_more(pool):
    generator = torch.Generator().manual_seed(0)
    change = step(pool, torch.nn.Parameter(torch.zeros(64, 16)), torch.randn(64, 16, generator=generator))
    assert 2 * 0.6 < torch.linalg.svdvals(change).median() < 2 * 1.3


def test_fused_blocks_are_treated_alone(pool):
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(3, 8, 8, generator=generator) for _ in range(2))
    fused = step(pool, torch.nn.Parameter(torch.zeros(3, 16, 8)), torch.cat([gate, up * 1000], dim=1), blocks=2)
    alone = [step(pool, torch.nn.Parameter(torch.zeros(3, 8, 8)), gradient) for gradient in (gate, up)]
    torch.testing.assert_close(fused, torch.cat(alone, dim=1), atol=1e-4, rtol=0)


def test_parameters_of_one_shape_are_not_mixed_up(pool):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(count, 8, 8, generator=generator) for count in (5, 20, 1)]
    params = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()
    Muon(params, lr=1.0, momentum=0.95, weight_decay=0.0, pool=pool).step()
    for param, gradient in zip(params, gradients, strict=True):
        alone = step(pool, torch.nn.Parameter(torch.zeros_like(gradient)), gradient)
        torch.testing.assert_close(param.detach(), alone, atol=1e-4, rtol=0)


def test_weights_decay(pool):
    change = step(pool, torch.nn.Parameter(torch.ones(4, 4)), torch.zeros(4, 4), lr=0.5, weight_decay=0.1)
    torch.testing.assert_close(change, torch.full((4, 4), -0.05))
