"""Trunks that write after some prompts with adapters, and how that is compared with PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.model.chunk_weights import ChunkWeights
from tests.expert_store.waiting import TIMEOUT, wait_until_idle
from tests.server.model.test_parity import generate

BLOCK = 16
STEPS = 4
TOLERANCE = 1e-5  # of the range of the logits
PROMPTS = [[5, 17, 99, 3, 42, 8, 64], [7], [23, 11, 90, 90, 12, 13, 14, 15, 16, 1, 77], [4, 90, 31], [61, 2, 8]]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = ["gate_proj", "up_proj", "down_proj"]
GATES = ["input_mix_weight_down", "input_mix_weight_up", "block_inject_weight"]  # of the residual stream

Greedy = tuple[list[int], torch.Tensor]

needs_peft = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]


def assert_near(found: Sequence[Greedy], expected: Sequence[Greedy]) -> None:
    for (tokens, logits), (expected_tokens, wanted) in zip(found, expected, strict=True):
        assert float((logits - wanted).abs().max()) <= TOLERANCE * float(wanted.max() - wanted.min())
        assert tokens == expected_tokens


class WritingModel:
    """A trunk, the weights of each prompt, and the results that it must have."""

    trunk: Any
    expected: Sequence[Greedy]
    prompts: Sequence[list[int]] = PROMPTS

    def weights(self, index: int) -> ChunkWeights | None:
        """Return the weights of a prompt; None for the base model's."""
        raise NotImplementedError

    def write(self, wanted: Sequence[int] = range(len(PROMPTS)), *, all_fit: bool = False) -> list[Greedy]:
        """Write after some of the prompts, in one batch."""
        catalog = self.trunk.catalog
        store = ExpertStore(catalog, catalog.total_bytes if all_fit else least_bytes(catalog, self.trunk.facts.top_k))
        try:
            if all_fit:
                store.preload(store.absent(), TIMEOUT)
                wait_until_idle(store)
            prompts, weights = [self.prompts[index] for index in wanted], [self.weights(index) for index in wanted]
            return generate(self.trunk, store, 5, STEPS, block_size=BLOCK, prompts=prompts, weights=weights)
        finally:
            store.close()

    def assert_near(self, found: Sequence[Greedy]) -> None:
        assert_near(found, self.expected)

    def assert_same_alone(self, together: Sequence[Greedy], some: Sequence[int] = range(len(PROMPTS))) -> None:
        """Assert that a prompt's results are the same to the bit in a step of its own."""
        for index in some:
            ((alone_tokens, alone),) = self.write([index])
            tokens, logits = together[index]
            assert tokens == alone_tokens
            assert torch.equal(logits, alone)
