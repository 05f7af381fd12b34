"""Every Mixture-of-Experts family of transformers: what stock gives, or a refusal that says why."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tests.families import FAMILIES
from tests.family_checks import examine
from tests.models_page import PAGE


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_what_docs_models_says_of_it(model_type: str, tmp_path: Path) -> None:
    assert str(examine(model_type, tmp_path)) in PAGE.read_text("utf-8").splitlines()


def test_every_family_of_transformers_is_in_the_table() -> None:
    """A model of several media comes under the type of its text."""
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        source = Path(inspect.getfile(MODEL_FOR_CAUSAL_LM_MAPPING[config])).read_text("utf-8")
        if "use_experts_implementation" in source:
            assert {config.model_type, f"{config.model_type}_text"} & set(FAMILIES), f"{config.model_type} is missing"
