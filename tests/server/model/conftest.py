"""Fixtures of the tests of models."""

from __future__ import annotations

import pytest
from transformers.modeling_outputs import MoeCausalLMOutputWithPast


@pytest.fixture
def whole_llama4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers 5.25's Llama 4 reads a field of its text output that does not exist."""
    monkeypatch.setattr(MoeCausalLMOutputWithPast, "image_outputs", None, raising=False)
