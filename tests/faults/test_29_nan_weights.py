"""Experts with NaN end the requests that need them with an error that says so, and the server goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import serving

pytestmark = pytest.mark.slow


def test_requests_of_experts_with_nan_fail_and_the_server_lives(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "tiny"))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "layers.1.mlp.experts." in name:
            tensors[name][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with serving(str(folder)) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once", "max_tokens": 5}, timeout=60)
        health = httpx.get(f"{server.url}/health")
    assert answer.status_code == 500
    assert "the model computed logits that are not finite numbers" in answer.json()["error"]["message"]
    assert health.status_code == 200
