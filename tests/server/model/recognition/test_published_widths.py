"""Twins of models at published widths are small, and show what the models' families declare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.architecture import text_body, text_model_config
from server.model.declarations.declaration import Declaration
from server.model.declarations.differences import differences
from server.model.families.registry import declared
from server.model.model_building import build_model, empty_experts
from server.model.recognition import find_program
from server.model.recognition.narrowing import Narrowing, narrow_by_heads, narrow_widths
from server.model.recognition.twin import Twin, build_twin, shape_twin
from tests.families import WITH_TEXT_OF_ANOTHER
from tests.native_families import NATIVE_FAMILIES
from tests.published_widths import make_wide_config

MOST_PARAMETERS = 30e6  # a second or two of one core
MOST_LAYERS = 8  # before the last kind, of those that are here
BY_HEADS = {"dbrx", "granitemoehybrid", "olmoe"}  # their hidden size is that of all heads together


def model_at_published_widths(model_type: str) -> PreTrainedModel:
    return build_model(text_model_config(make_wide_config(model_type)), torch.bfloat16)


@pytest.mark.parametrize("model_type", [name for name in NATIVE_FAMILIES if name not in WITH_TEXT_OF_ANOTHER])
def test_the_twin_of_a_model_at_published_widths_is_small(model_type: str) -> None:
    narrow = narrow_by_heads if model_type in BY_HEADS else narrow_widths
    twin, _, _ = shape_twin(model_at_published_widths(model_type), narrow)
    empty_experts(twin)
    assert sum(value.numel() for value in twin.parameters()) < MOST_PARAMETERS
    body = text_body(twin)
    assert len(getattr(body, "layers", None) or body.blocks) <= MOST_LAYERS


@pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")
@pytest.mark.parametrize("model_type", NATIVE_FAMILIES)
def test_a_narrow_twin_shows_what_the_family_declares_of_a_model_at_published_widths(
    model_type: str, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(model: PreTrainedModel, longest: int, narrow: Narrowing | None = None) -> Twin:
        assert narrow is not None
        return build_twin(model, longest, narrow)

    monkeypatch.setattr(find_program, "build_twin", build)
    model = model_at_published_widths(model_type)
    own = declared(model.config.get_text_config())
    assert isinstance(own, Declaration)
    assert [*differences(own, find_program.recognise_twin(model, kernels, 4096))] == []


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    found = Kernels(1)
    yield found
    found.close()
