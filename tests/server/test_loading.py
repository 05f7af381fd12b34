"""What a server takes of a model, beside the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.loading import load_media_processor
from server.model.processor import MediaProcessor
from server.model.trunk import TrunkFacts
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.vision import save_vision

TOGETHER, SOLO = (TrunkFacts((), 2, {}, (), reason) for reason in (None, "it has layers of another kind"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(make_config("qwen3_vl_moe"), tmp_path)
    save_vision("qwen3_vl_moe", tmp_path)
    return tmp_path


def test_images_go_to_models_that_run_many_sequences_and_are_refused_elsewhere(folder: Path) -> None:
    assert isinstance(load_media_processor(folder, TOGETHER), MediaProcessor)
    assert load_media_processor(folder, SOLO) == "images of this model are not supported yet; send text alone"


@pytest.mark.parametrize("facts", [TOGETHER, SOLO])
def test_a_model_of_text_says_so(facts: TrunkFacts, tmp_path: Path) -> None:
    folder = save_checkpoint(make_config("mixtral"), tmp_path)
    assert load_media_processor(folder, facts) == "the model takes no images"
