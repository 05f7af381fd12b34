"""RMS norms of a model run as one kernel each, and give what their modules give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2SamLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.mamba2.modeling_mamba2 import Mamba2RMSNormGated
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.kernels.triton.rms_norm import RmsNorm
from server.model.cuda_layers.norms import fuse_norms

DEVICE = torch.device("cuda" if has_driver() else "cpu")
SIZE = 90
NORMS: dict[str, Callable[[], nn.Module]] = {
    "weights": lambda: Qwen3MoeRMSNorm(SIZE, eps=1e-3),
    "weights of which 1 is left out": lambda: Gemma3RMSNorm(SIZE, eps=1e-3),
    "no weights": lambda: Gemma4RMSNorm(SIZE, eps=1e-3, with_scale=False),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a mean": lambda: nn.LayerNorm(SIZE),
    "a gate": lambda: Mamba2RMSNormGated(SIZE, SIZE),
    "a matrix": lambda: nn.Linear(SIZE, SIZE),
    "channels of images": lambda: DeepseekOcr2SamLayerNorm(SIZE, data_format="channels_first"),
}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    monkeypatch.setattr(available, "missing", lambda _: None)


def make(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    module = build()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return nn.Sequential(module).requires_grad_(False).to(DEVICE, dtype)


@pytest.mark.parametrize("name", NORMS)
def test_rows_are_normed_as_by_the_module(name: str) -> None:
    model = make(NORMS[name])
    rows = torch.randn((2, 3, SIZE), device=DEVICE).transpose(0, 1)
    expected = model(rows)
    assert fuse_norms(model, DEVICE) == 1
    found = model(rows)
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())
    assert torch.equal(model(rows[1:2, :1]), found[1:2, :1])


def test_half_precision_is_rounded_once() -> None:
    model, narrow = (make(NORMS["weights"], dtype) for dtype in (torch.float32, torch.float16))
    rows = torch.randn((3, SIZE), device=DEVICE).half()
    model[0].weight.data = narrow[0].weight.data.float()
    assert fuse_norms(narrow, DEVICE) == fuse_norms(model, DEVICE) == 1
    assert torch.equal(narrow(rows), model(rows.float()).half())


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_rms_norm_stays_as_it_is(name: str) -> None:
    model = make(OTHERS[name])
    assert fuse_norms(model, DEVICE) == 0
    assert not isinstance(model[0].forward, RmsNorm)


def test_nothing_changes_where_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(NORMS["weights"])
    monkeypatch.setattr(available, "missing", lambda _: "there is no driver")
    assert fuse_norms(model, DEVICE) == 0
    assert fuse_norms(model, None) == 0
