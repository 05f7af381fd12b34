"""Predictions about a model elsewhere: the requests that a miss takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import catalog
from server.inspection.download_time import predict_download
from server.inspection.model_summary import summarise_model
from server.settings import ServeSettings
from tests.checkpoints import make_checkpoint
from tests.gguf.models import FILES


@pytest.mark.parametrize(
    ("model", "requests"), [("qwen3_moe", 1), ("gemma4_text", 2), ("qwen3moe.gguf", 3), ("gpt-oss.gguf", 6)]
)
def test_a_miss_takes_a_request_for_all_parts_that_lie_together(
    model: str, requests: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_GAP_BYTES", 0)  # the parts of so small experts lie close together
    place = FILES / model if model.endswith(".gguf") else make_checkpoint(model, tmp_path / "tiny")
    summary = summarise_model(str(place), ServeSettings(), torch.device("cpu"))
    assert predict_download(summary, 1e6)["requests_per_miss"] == requests
