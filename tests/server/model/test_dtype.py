"""The dtype to compute in holds for all parts of a model, whatever dtypes its config names for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from server.model.architecture import config_parts
from server.model.dtype import compute_dtype, stored_dtype, suits_bfloat16
from server.model.model_building import build_model
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES, make_config
from tests.server.model.checkpoint.test_packing import logits_of

DTYPES = (torch.float32, torch.bfloat16)
OF_PARTS = [name for name, family in FAMILIES.items() if CONFIG_MAPPING[name].sub_configs and not family.refusal]


def config_naming(model_type: str, dtype: torch.dtype) -> PreTrainedConfig:
    """Return a family's config, in which every part names a dtype, as published ones do."""
    config = make_config(model_type)
    for part in config_parts(config):
        part.dtype = dtype
    return config


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OF_PARTS)
def test_every_part_of_a_family_is_built_in_the_dtype_to_compute_in(model_type: str) -> None:
    for dtype, other in (DTYPES, DTYPES[::-1]):
        wanted, found = (build_model(config_naming(model_type, named), dtype) for named in (dtype, other))
        assert {name: value.dtype for name, value in found.state_dict().items()} == {
            name: value.dtype for name, value in wanted.state_dict().items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "gemma4", "mistral3"])
def test_a_model_whose_parts_name_another_dtype_gives_the_same_logits(model_type: str, tmp_path: Path) -> None:
    folder = save_checkpoint(config_naming(model_type, torch.float32), tmp_path, torch.bfloat16)
    wanted = logits_of(load_trunk(folder, torch.float32))
    config_naming(model_type, torch.bfloat16).save_pretrained(folder)
    found = logits_of(load_trunk(folder, torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_the_dtype_of_the_checkpoint_is_still_known_once_its_model_is_built() -> None:
    model = build_model(config_naming("qwen3_vl_moe", torch.bfloat16), torch.float32)
    assert stored_dtype(model.config) == torch.bfloat16


@pytest.mark.parametrize(("is_native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_on_a_slow_processor_only_for_native_layers(
    is_native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    config = config_naming("qwen3_moe", torch.bfloat16)
    assert compute_dtype("auto", config, torch.device("cpu"), is_native=is_native) == expected


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_bfloat16_suits_plain_checkpoints_only_if_they_store_it(stored: torch.dtype) -> None:
    assert suits_bfloat16(config_naming("qwen3_moe", stored)) == (stored == torch.bfloat16)
