"""Logits in bfloat16 by native layers are no further from those in float32 than transformers' in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.families import make_config
from tests.family_divergence import divergence, random_texts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gemma4_text", "deepseek_v2", "gpt_oss"])
def test_bfloat16_is_as_close_to_float32_as_transformers(model_type: str, tmp_path: Path) -> None:
    """By the median over positions: at a few, rounding chooses another expert."""
    found = divergence(make_checkpoint(model_type, tmp_path, torch.bfloat16), random_texts(make_config(model_type)))
    assert found.ours.median() <= found.stock.median()
