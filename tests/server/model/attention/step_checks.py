"""Checks of trunks whose attention chooses keys or runs sequence by sequence."""

from __future__ import annotations

import torch

from expert_store import ExpertStore
from server.model.attention.kv_cache import KVCache
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from tests.server.model.test_parity import generate

BLOCK = 16
ROUNDING = 1e-5  # of the range of logits
PROMPTS = [[index % 113 + 3 for index in range(70)], [7, 3], [5, 17, 99, 3, 42, 8, 64, 23, 11, 90]]


def check_company_and_chunks(trunk: Trunk) -> None:
    """Check that a sequence has the same logits, but for rounding, in company and in chunks as alone and at once."""
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    together = generate(trunk, store, 9, 3, prompts=PROMPTS)
    for prompt, (tokens, logits) in zip(PROMPTS, together, strict=True):
        ((alone_tokens, alone),) = generate(trunk, store, 128, 3, prompts=[prompt])
        assert tokens == alone_tokens
        check_rounding(logits, alone)
    store.close()


def check_blocks_of_another(trunk: Trunk) -> None:
    """Check that a sequence continues from blocks that another has filled."""
    prompt = [index % 113 + 3 for index in range(40)]
    store, groups = ExpertStore(trunk.catalog, trunk.catalog.total_bytes), trunk.facts.kv_groups
    cache = KVCache(groups, [6] * len(groups), BLOCK)
    whole = trunk.forward([SequenceChunk(prompt, 0, [[0, 1, 2]] * len(groups))], cache, store)
    other = trunk.forward([SequenceChunk(prompt[32:], 32, [[0, 1, 5]] * len(groups))], cache, store)
    store.close()
    check_rounding(other.logits, whole.logits)


def check_rounding(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).abs().max()) < ROUNDING * float(wanted.max() - wanted.min())
