"""All tokens go to the same experts, or each to other ones than the last: texts are as alone, and nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.checkpoint.locate import BUNDLED
from tests.faults.bundled import serving_bundled, text_of
from tests.server.live.requests import ask, ask_together, post
from tests.server.model.variants import read_tensors, save_changed

pytestmark = pytest.mark.slow

NUM_REQUESTS = 12


def routers(kind: str) -> dict[str, torch.Tensor]:
    """Return routers that choose the same experts for every token, or ones that vary as much as they can."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, tensor in read_tensors(BUNDLED).items():
        if name.endswith(".mlp.gate.weight"):
            scattered = torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 10
            found[name] = torch.zeros_like(tensor) if kind == "same" else scattered
    assert found
    return found


@pytest.mark.parametrize("kind", ["same", "other"])
def test_texts_in_company_are_those_alone(kind: str, tmp_path: Path) -> None:
    model = save_changed(tmp_path / "model", BUNDLED, routers(kind))
    requests = [
        post("/v1/completions", prompt=f"{number} dogs and", max_tokens=16, temperature=0)
        for number in range(NUM_REQUESTS)
    ]
    with serving_bundled(str(model), deterministic=True, host_expert_memory="10%") as (server, loaded):
        alone = [text_of(ask(server.port, request)) for request in requests]
        used = (loaded.store.statistics().tokens > 0).sum(axis=1)
        together = [text_of(answer) for answer in ask_together(server.port, requests)]
        loaded.store.check_integrity()
    assert together == alone
    assert set(used) == {2} if kind == "same" else used.min() > 10
