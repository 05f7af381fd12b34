"""Layers that add residuals where they norm them give the bits of layers that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from server.kernels.residual_stream import ResidualStream
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.cuda_layers.norms import fuse_norms
from server.model.cuda_layers.residuals import fuse_residuals
from tests.families import make_config

DEVICE = torch.device("cuda" if has_driver() else "cpu")
SIZE = 90


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4_text"])
def test_a_model_has_the_logits_that_it_has_without(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(name)).to(DEVICE, torch.float16).eval()
    fuse_norms(model, DEVICE)
    tokens = torch.tensor([[5, 17, 99]], device=DEVICE)
    with torch.inference_mode():
        expected = model(tokens, use_cache=False).logits
        assert fuse_residuals(model, DEVICE) == model.config.num_hidden_layers
        assert torch.equal(model(tokens, use_cache=False).logits, expected)


@pytest.fixture
def norm() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(Qwen3MoeRMSNorm(SIZE)).requires_grad_(False).to(DEVICE, torch.float16)
    nn.init.normal_(model[0].weight)
    assert fuse_norms(model, DEVICE) == 1
    return model[0]


def rows(seed: int) -> torch.Tensor:
    return torch.randn((2, 3, SIZE), generator=torch.Generator().manual_seed(seed)).half().to(DEVICE)


def test_a_norm_adds_and_rounds_as_torch_does(norm: nn.Module) -> None:
    stream = ResidualStream(rows(0)) + rows(1)
    assert isinstance(stream, ResidualStream)
    assert torch.equal(norm(stream), norm(rows(0) + rows(1)))
    assert torch.equal(stream.whole(), rows(0) + rows(1))


def test_other_functions_get_the_sum() -> None:
    stream = rows(0) + ResidualStream(rows(1))
    expected = rows(0) + rows(1)
    assert (stream.shape, stream.dtype, stream.device) == (expected.shape, expected.dtype, expected.device)
    assert torch.equal(stream.reshape(6, SIZE), expected.reshape(6, SIZE))
    assert torch.equal(torch.cat([stream, stream]), torch.cat([expected, expected]))
    assert torch.equal(stream * 2 + stream, expected * 2 + expected)


def test_what_is_changed_in_place_is_changed_for_all() -> None:
    first = rows(0)
    stream = residual = ResidualStream(first)
    stream *= 2
    assert torch.equal(residual.whole(), rows(0) * 2)
    assert torch.equal(first, rows(0) * 2)


@pytest.mark.parametrize("added", [1.0, torch.ones(SIZE), torch.ones((2, 3, SIZE), dtype=torch.float32)])
def test_a_sum_of_unlike_tensors_is_not_put_off(added: float | torch.Tensor) -> None:
    added = added if isinstance(added, float) else added.to(DEVICE)
    found = ResidualStream(rows(0)) + added
    assert not isinstance(found, ResidualStream)
    assert torch.equal(found, rows(0) + added)
