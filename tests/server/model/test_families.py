"""Every Mixture-of-Experts family of transformers: the results of transformers, or a refusal with its reason."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from expert_store import ExpertStore
from server.model.architecture import MAPPINGS
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.model_shapes import infer_shapes
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES, make_config
from tests.family_checks import examine
from tests.models_page import PAGE
from tests.server.model.checkpoint.test_packing import logits_of, pack
from tests.server.model.test_parity import generate

pytestmark = pytest.mark.slow

SERVED = [model_type for model_type, family in FAMILIES.items() if family.refusal is None]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_as_in_docs_models(model_type: str, tmp_path: Path) -> None:
    assert str(examine(model_type, tmp_path)) in PAGE.read_text("utf-8").splitlines()


@pytest.mark.parametrize("model_type", SERVED)
def test_the_config_of_a_family_shows_the_facts_of_its_trunk(model_type: str, tmp_path: Path) -> None:
    trunk = load_trunk(save_checkpoint(make_config(model_type), tmp_path), torch.float32)
    outlined = infer_shapes(read_config(tmp_path), torch.float32)
    assert outlined.trunk_bytes == trunk.nbytes
    assert outlined.kv_groups == trunk.facts.kv_groups
    assert max(outlined.top_k.values()) == trunk.facts.top_k
    assert outlined.max_model_len == trunk.max_model_len
    assert outlined.sequential_reason == trunk.facts.program.sequential_reason


@pytest.mark.parametrize("model_type", [model_type for model_type in FAMILIES if model_type not in SERVED])
def test_what_is_not_served_is_refused_by_its_config_for_the_same_reason(model_type: str) -> None:
    with pytest.raises(ModelError, match=re.escape(str(FAMILIES[model_type].refusal))):
        infer_shapes(make_config(model_type), torch.float32)


@pytest.mark.parametrize("model_type", SERVED)
def test_a_checkpoint_with_the_names_of_transformers_gives_the_same_bits(model_type: str, tmp_path: Path) -> None:
    """Some publish what transformers 5 saves of itself: experts in one tensor a layer, whatever came before."""
    config = make_config(model_type)
    folders = [save_checkpoint(config, tmp_path / str(kind), as_published=kind) for kind in (True, False)]
    wanted, found = (logits_of(load_trunk(folder, torch.float32)) for folder in folders)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("model_type", SERVED)
def test_a_pack_of_a_family_gives_the_same_bits(model_type: str, tmp_path: Path) -> None:
    folder = save_checkpoint(make_config(model_type), tmp_path / "checkpoint", torch.bfloat16)
    wanted = logits_of(load_trunk(folder, torch.float32))
    found = logits_of(load_trunk(pack(folder, tmp_path / "pack"), torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("model_type", SERVED)
def test_a_deterministic_family_is_batch_invariant(model_type: str, tmp_path: Path) -> None:
    """Pieces of its prompts of any size, beside any other pieces, have the same bits."""
    folder = save_checkpoint(make_config(model_type), tmp_path, torch.bfloat16)
    trunk = load_trunk(folder, torch.bfloat16, is_deterministic=True)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    whole, pieces = (generate(trunk, store, chunk, steps=2) for chunk in (64, 5))
    store.close()
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(whole, pieces, strict=True))


def speaks_of_experts(config: Any) -> bool:
    """Return whether a class of configs, or of one of its parts, has fields for experts."""
    parts = {
        CONFIG_MAPPING[config.sub_configs_defaults[name].model_type] if part is AutoConfig else part
        for name, part in config.sub_configs.items()
    }
    return any("expert" in attribute.name for attribute in fields(config)) or any(map(speaks_of_experts, parts))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_every_family_of_transformers_is_in_the_table(mapping: Any) -> None:
    """Families are in the table even if their experts bypass transformers' interface; drafters are not."""
    for config in mapping:
        if config.model_type.endswith("_assistant"):
            continue
        source = Path(inspect.getfile(mapping[config])).read_text("utf-8")
        if "use_experts_implementation" in source or speaks_of_experts(config):
            assert config.model_type in FAMILIES, f"{config.model_type} is missing"
