"""Plans the memory of passes of prompts, which hold a row of each of their tokens from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from server.device import is_gpu
from server.memory.expert_plan import host_bytes
from server.memory.step_memory import pass_token_bytes
from server.settings import BATCHED_TOKENS, ServeSettings

if TYPE_CHECKING:
    from server.memory.plan import ModelNeeds

PASS_SHARE = 16  # a pass may hold 1/16 of the memory that the least of everything leaves
LEAST_STEPS = 2  # a shorter pass reads no fewer experts than a step


def plan_pass(settings: ServeSettings, needs: ModelNeeds, device: torch.device, spare_bytes: int) -> int:
    """Return the bytes that a pass may hold, for a context's tokens at most; 0 if prompts run by chunks.

    Args:
        spare_bytes: what the least of everything leaves of the budget.
    """
    if settings.prefill == "chunks" or is_gpu(device) or not needs.step.has_native:
        return 0
    total = needs.catalog.total_bytes
    if settings.prefill == "auto" and host_bytes(settings, needs.catalog, min(total, spare_bytes)) == total:
        return 0
    of_token = pass_token_bytes(needs.step)
    least = LEAST_STEPS * (settings.max_batched_tokens or BATCHED_TOKENS) * of_token
    longest = min(needs.longest, settings.max_model_len or needs.longest)
    nbytes = min(max(least, spare_bytes // PASS_SHARE), max(least, longest * of_token))
    return nbytes if nbytes <= spare_bytes // 2 else 0
