"""The memory of passes of prompts in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from server.memory.plan import MemoryPlan, least_budget, plan_memory
from server.memory.step_memory import pass_token_bytes
from server.settings import BATCHED_TOKENS, ServeSettings
from tests.server.memory.models import STEP, make_needs

CPU = torch.device("cpu")
MIB = 1 << 20
PROCESS = 200 * MIB


def plan(folder: Path, spare_bytes: int, num_experts: int = 1024, **settings: Any) -> MemoryPlan:
    asked, needs = ServeSettings.model_validate(settings), make_needs(folder, num_experts=num_experts, longest=8192)
    return plan_memory(asked, needs, CPU, least_budget(asked, needs, CPU, PROCESS) + spare_bytes, PROCESS)


def test_a_pass_takes_a_share_of_the_memory_and_is_part_of_the_largest_step(tmp_path: Path) -> None:
    small, large = plan(tmp_path, 6 * MIB), plan(tmp_path, 6 * MIB, prefill="chunks")
    assert small.pass_tokens == 2 * BATCHED_TOKENS
    assert small.step_bytes == large.step_bytes + small.pass_bytes
    assert (large.pass_bytes, large.pass_tokens) == (0, 0)


def test_a_pass_is_no_longer_than_the_context(tmp_path: Path) -> None:
    of_all = plan(tmp_path, 400 * MIB, prefill="layers")
    assert of_all.pass_bytes == 8192 * pass_token_bytes(STEP)


@pytest.mark.parametrize(("spare_mib", "settings"), [(400, {}), (1, {})])
def test_prompts_run_by_chunks_where_all_experts_or_no_pass_fits(
    tmp_path: Path, spare_mib: int, settings: dict[str, Any]
) -> None:
    assert plan(tmp_path, spare_mib * MIB, **settings).pass_bytes == 0
