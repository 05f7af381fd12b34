"""Every Mixture-of-Experts family of transformers: the results of transformers, or a refusal with its reason."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from expert_store import ExpertStore
from server.kernels.native.available import availability
from server.model.architecture import MAPPINGS
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.from_config.shapes import infer_shapes
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES, WITH_TEXT_OF_ANOTHER, make_config
from tests.family_checks import examine
from tests.family_programs import BATCHED, program_of
from tests.models_page import PAGE
from tests.server.model.checkpoint.test_packing import logits_of, pack
from tests.server.model.test_parity import generate

SERVED = [model_type for model_type, family in FAMILIES.items() if family.refusal is None]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_as_in_docs_models(model_type: str, tmp_path: Path) -> None:
    assert str(examine(model_type, tmp_path)) in PAGE.read_text("utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("model_type", BATCHED)
def test_a_family_runs_natively_as_in_docs_models(model_type: str, tmp_path: Path) -> None:
    assert str(program_of(model_type, tmp_path)) in PAGE.read_text("utf-8").splitlines()


@dataclass(frozen=True)
class Loaded:
    """A checkpoint of a family in bfloat16, its trunk in float32, and the logits that it has after the prompts."""

    model_type: str
    folder: Path
    trunk: Trunk | SequentialTrunk
    logits: list[torch.Tensor]

    def assert_same_bits(self, other: Path) -> None:
        found = logits_of(load_trunk(other, torch.float32), steps=1)
        assert all(map(torch.equal, found, self.logits))
        assert len(found) == len(self.logits)


@pytest.fixture(scope="module", params=SERVED)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    trunk = load_trunk(save_checkpoint(make_config(request.param), folder, torch.bfloat16), torch.float32)
    return Loaded(request.param, folder, trunk, logits_of(trunk, steps=1))


@pytest.mark.slow
def test_the_config_of_a_family_shows_the_facts_of_its_trunk(loaded: Loaded) -> None:
    trunk, outlined = loaded.trunk, infer_shapes(read_config(loaded.folder), torch.float32)
    assert outlined.trunk_bytes == trunk.nbytes
    assert outlined.kv_groups == trunk.facts.kv_groups
    assert max(outlined.top_k.values()) == trunk.facts.top_k
    assert outlined.max_model_len == trunk.max_model_len
    assert outlined.sequential_reason == trunk.facts.program.sequential_reason


@pytest.mark.parametrize("model_type", [model_type for model_type in FAMILIES if model_type not in SERVED])
def test_what_is_not_served_is_refused_by_its_config_for_the_same_reason(model_type: str) -> None:
    with pytest.raises(ModelError, match=re.escape(str(FAMILIES[model_type].refusal))):
        infer_shapes(make_config(model_type), torch.float32)


@pytest.mark.slow
def test_a_checkpoint_with_the_names_of_transformers_gives_the_same_bits(loaded: Loaded, tmp_path: Path) -> None:
    """Some publish what transformers 5 saves of itself: experts in one tensor a layer, whatever came before."""
    loaded.assert_same_bits(
        save_checkpoint(make_config(loaded.model_type), tmp_path, torch.bfloat16, as_published=False)
    )


@pytest.mark.slow
def test_a_pack_of_a_family_gives_the_same_bits(loaded: Loaded, tmp_path: Path) -> None:
    loaded.assert_same_bits(pack(loaded.folder, tmp_path / "pack"))


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [name for name in SERVED if name not in WITH_TEXT_OF_ANOTHER], indirect=True)
def test_a_deterministic_family_is_batch_invariant(loaded: Loaded) -> None:
    """Pieces of its prompts of any size, beside any other pieces, have the same bits."""
    trunk = load_trunk(loaded.folder, torch.bfloat16, is_deterministic=True)
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


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_every_family_of_transformers_is_in_the_table(mapping: Any) -> None:
    """Families are in the table even if their experts bypass transformers' interface; drafters are not."""
    for config in mapping:
        if config.model_type.endswith("_assistant") or not config.__module__.startswith("transformers."):
            continue
        source = Path(inspect.getfile(mapping[config])).read_text("utf-8")
        if "use_experts_implementation" in source or speaks_of_experts(config):
            assert config.model_type in FAMILIES, f"{config.model_type} is missing"
