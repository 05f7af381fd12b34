"""What a server takes of a model, beside the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.kernels.native import available
from server.kernels.native.available import Availability
from server.loading import kernel_level, load_media_processor
from server.model.processor import MediaProcessor
from server.model.trunk import TrunkFacts
from server.settings import ServeSettings, SettingsError
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.vision import save_vision

TOGETHER, SOLO = (TrunkFacts((), 2, {}, (), reason) for reason in (None, "it has layers of another kind"))
ANSWERED = replace(SOLO, reads_whole=True)


def save(model_type: str, folder: Path) -> Path:
    save_checkpoint(make_config(model_type), folder)
    save_vision(model_type, folder)
    return folder


@pytest.mark.parametrize("facts", [TOGETHER, SOLO])
def test_images_go_to_models_that_run_sequences_together_or_one_after_the_other(
    facts: TrunkFacts, tmp_path: Path
) -> None:
    assert isinstance(load_media_processor(save("qwen3_vl_moe", tmp_path), facts), MediaProcessor)


def test_images_whose_tokens_see_ahead_are_refused_where_masks_are_not_ours(tmp_path: Path) -> None:
    folder = save("gemma4", tmp_path)
    assert isinstance(load_media_processor(folder, TOGETHER), MediaProcessor)
    refusal = "their tokens see those that follow, which this model's own attention is not told yet; send text alone"
    assert load_media_processor(folder, SOLO) == refusal


def test_images_are_refused_where_an_encoder_reads_prompts(tmp_path: Path) -> None:
    refusal = "the encoder that reads this model's prompts takes none yet; send text alone"
    assert load_media_processor(save("qwen3_vl_moe", tmp_path), ANSWERED) == refusal


@pytest.mark.parametrize("facts", [TOGETHER, SOLO])
def test_a_model_of_text_says_so(facts: TrunkFacts, tmp_path: Path) -> None:
    folder = save_checkpoint(make_config("mixtral"), tmp_path)
    assert load_media_processor(folder, facts) == "the model takes no images"


def test_kernels_that_can_not_be_had_are_refused_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "availability", lambda: Availability(("portable",), (), None))
    settings = ServeSettings(kernels="avx2")
    with pytest.raises(SettingsError, match=r"^--kernels avx2: avx2 is more than this processor can run"):
        kernel_level(settings, torch.device("cpu"))
    assert kernel_level(settings, torch.device("cuda")) is None
