"""Reads ahead in pieces of prompts: which object does so, by where the experts are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expert_store.prefetching.prompt_stream import DevicePromptStream
from server.loading.build_engine import open_experts
from server.settings import ServeSettings
from tests.expert_store.records import LAYOUT, make_records


@pytest.mark.parametrize(
    ("device_slots", "prefetch", "expected"),
    [(4, "auto", DevicePromptStream), (4, "off", type(None)), (0, "auto", type(None))],
)
def test_a_device_tier_copies_the_next_layer_of_a_prompt_ahead(
    tmp_path: Path, device_slots: int, prefetch: Any, expected: type
) -> None:
    facts = SimpleNamespace(uses_every_expert=False, top_k=2)
    trunk = SimpleNamespace(catalog=make_records(tmp_path), facts=facts, gates={})
    model: Any = SimpleNamespace(trunk=trunk, device=torch.device("cpu"), experts_per_layer={0: 8, 1: 8})
    slot = LAYOUT.slot_bytes
    plan: Any = SimpleNamespace(host_bytes=8 * slot, device_bytes=device_slots * slot)
    experts = open_experts(ServeSettings(prefetch=prefetch), model, plan)
    try:
        assert isinstance(getattr(experts.prefetcher, "for_prompts", None), expected)
    finally:
        experts.close()
