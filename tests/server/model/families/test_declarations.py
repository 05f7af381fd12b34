"""Each declared family is what transformers computes on the family's twin."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.architecture import text_model_config
from server.model.declarations.codec import from_json, to_json
from server.model.declarations.declaration import Declaration
from server.model.declarations.differences import differences
from server.model.families.registry import declared
from server.model.model_building import build_model
from server.model.recognition.find_program import recognise_twin
from tests.families import make_config
from tests.native_families import NATIVE_FAMILIES
from tests.server.model.families.variations import VARIATIONS

LONGEST = 256
CASES = [(name, changes) for name in NATIVE_FAMILIES for changes in ({}, *VARIATIONS.get(name, ()))]

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    found = Kernels(1)
    yield found
    found.close()


def config_of(name: str, changes: dict[str, Any]) -> PreTrainedConfig:
    """Return the tiny config of a family with other values in the config of its text part."""
    config = text_model_config(make_config(name))
    text = config.get_text_config()
    for key, value in changes.items():
        setattr(text, key, value)
    return config


@pytest.mark.parametrize(("name", "changes"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_a_declaration_is_what_the_twin_shows(name: str, changes: dict[str, Any], kernels: Kernels) -> None:
    model = build_model(text_model_config(deepcopy(config_of(name, changes))), torch.float32)
    found = recognise_twin(model, kernels, LONGEST)
    own = declared(model.config.get_text_config())
    assert isinstance(own, Declaration)
    assert [*differences(own, found)] == []


def test_a_declaration_is_the_same_after_json() -> None:
    own = declared(make_config("gemma4_text"))
    assert own is not None
    assert [*differences(from_json(to_json(own)), own)] == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "Layer"}', '{"type": "Declaration", "layers": 3, "x": 1}'])
def test_other_json_holds_no_declaration(text: str) -> None:
    with pytest.raises(ValueError, match=r"no declaration|Expecting value"):
        from_json(text)
