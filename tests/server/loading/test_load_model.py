"""Image processors and native kernels of a model that is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from server.kernels.native import available
from server.kernels.native.available import Availability, kernel_level
from server.loading.load_model import check_aliases, load_media_processor, load_model
from server.model import trunk_loader
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.multimodal.image_processor import MediaProcessor
from server.model.program import LayerTargets, ModelProgram, Target
from server.model.recognition import find_program
from server.model.trunk.base_trunk import TrunkFacts
from server.setting_values import parse_alias
from server.settings import ServeSettings, SettingsError
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.coded.test_coded_weights import unlike_any
from tests.vision import save_vision

TOGETHER, SOLO = (
    TrunkFacts((), 2, {}, (), ModelProgram((LayerTargets("layer", target, target),)))
    for target in (Target.MODULES, Target.TRANSFORMERS)
)
ANSWERED = replace(SOLO, is_encoder_decoder=True)


def save(model_type: str, folder: Path) -> Path:
    save_checkpoint(make_config(model_type), folder)
    save_vision(model_type, folder)
    return folder


@pytest.mark.parametrize("facts", [TOGETHER, SOLO])
def test_batched_and_sequential_models_take_images(facts: TrunkFacts, tmp_path: Path) -> None:
    assert isinstance(load_media_processor(FolderCheckpoint(save("qwen3_vl_moe", tmp_path)), facts), MediaProcessor)


def test_sequential_models_refuse_images_with_bidirectional_attention(tmp_path: Path) -> None:
    folder = save("gemma4", tmp_path)
    assert isinstance(load_media_processor(FolderCheckpoint(folder), TOGETHER), MediaProcessor)
    refusal = "bidirectional attention within images is not supported for this model yet; send text alone"
    assert load_media_processor(FolderCheckpoint(folder), SOLO) == refusal


def test_encoder_decoder_models_refuse_images(tmp_path: Path) -> None:
    refusal = "this model's prompts go through an encoder, which is not supported with images yet; send text alone"
    assert load_media_processor(FolderCheckpoint(save("qwen3_vl_moe", tmp_path)), ANSWERED) == refusal


@pytest.mark.parametrize("facts", [TOGETHER, SOLO])
def test_a_text_model_refuses_images(facts: TrunkFacts, tmp_path: Path) -> None:
    folder = save_checkpoint(make_config("mixtral"), tmp_path)
    assert load_media_processor(FolderCheckpoint(folder), facts) == "the model takes no images"


@pytest.mark.slow
@pytest.mark.skipif(not available.availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("is_native", [True, False])
def test_where_bfloat16_is_slow_only_native_layers_compute_in_it(
    is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    if not is_native:
        monkeypatch.setattr(find_program, "recognise", unlike_any)
    trunk = load_model(None, ServeSettings()).trunk
    assert (trunk.facts.program.is_native, trunk.dtype) == (is_native, torch.bfloat16 if is_native else torch.float32)


@pytest.mark.skipif(not available.availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_only_a_model_that_was_asked_for_in_float32_has_exact_products(dtype: Literal["auto", "float32"]) -> None:
    kernels = load_model(None, ServeSettings(dtype=dtype)).trunk._pool.kernels
    assert kernels is not None
    assert kernels.rounds_float32 == (dtype == "auto")


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_deterministic_model_with_indexers_is_read_once(
    kernels: Literal["auto", "off"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = list[str]()
    load = trunk_loader.load_trunk_weights
    monkeypatch.setattr(trunk_loader, "load_trunk_weights", lambda *given: (reads.append(given[-1]), load(*given)))
    settings = ServeSettings(deterministic=True, kernels=kernels, dtype="float32")
    save_checkpoint(make_config("deepseek_v32"), tmp_path)
    save_byte_tokenizer(tmp_path)
    parts = load_model(str(tmp_path), settings)
    assert parts.trunk.facts.program.is_sequential == (parts.kernels is None)
    assert len(reads) == 1


def test_kernels_that_can_not_run_are_refused_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "availability", lambda: Availability(("portable",), (), None))
    settings = ServeSettings(kernels="avx2")
    with pytest.raises(SettingsError, match=r"^--kernels avx2: avx2 can't run, since this processor does not"):
        kernel_level(settings, torch.device("cpu"))
    assert kernel_level(settings, torch.device("cuda")) is None


def test_an_alias_of_a_model_that_is_not_served_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--model-alias gpt-\*=other: this server serves tiny; write gpt-\*=tiny"):
        check_aliases([parse_alias("claude-*=tiny"), parse_alias("gpt-*=other")], "tiny")
