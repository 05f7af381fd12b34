"""Paged models have the logits and tokens of transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from expert_store import ExpertStore, Prefetcher, least_bytes
from expert_store.policies import POLICIES
from server.model.attention.kv_cache import KVCache
from server.model.attention.window import oldest_seen
from server.model.chunk_weights import ChunkWeights
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint

pytestmark = pytest.mark.slow

BLOCK_SIZE = 4
PROMPTS = [[5, 17, 99, 3, 42, 8, 64], [7], [23, 11, 90, 90, 12, 13, 14, 15, 16, 1, 77]]
NEW_TOKENS = 6  # more than a window has, after the prompt of one token
TOLERANCE = 1e-4  # of the range of the logits
DEVICE_SLOTS = (0, 3, 7)


@pytest.fixture(scope="module", params=[*CONFIGS, "dbrx", "llama4_text"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Return greedy tokens of each prompt alone, and the logits that chose them, by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    results = []
    for prompt in PROMPTS:
        ids, logits = list(prompt), []
        for _ in range(NEW_TOKENS):
            with torch.inference_mode():
                logits.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(logits[-1].argmax()))
        results.append((ids[len(prompt) :], torch.stack(logits)))
    return results


def generate(
    trunk: Trunk | SequentialTrunk,
    store: ExpertStore,
    chunk: int = 64,
    steps: int = NEW_TOKENS,
    prefetcher: Prefetcher | None = None,
    order: Callable[[int], Sequence[int]] = range,
    block_size: int = BLOCK_SIZE,
    prompts: Sequence[list[int]] = PROMPTS,
    weights: Sequence[ChunkWeights | None] | None = None,
) -> list[tuple[list[int], torch.Tensor]]:
    """All prompts in one ragged batch, greedily; prompts go in by pieces of ``chunk`` tokens.

    Each group of layers has as many blocks as hold all sequences, given to them in an order; those that no later token
    sees are given back.

    Args:
        weights: of each prompt's sequence, beside the base model's.
    """
    blocks = -(-(max(map(len, prompts)) + steps) // block_size)
    groups = trunk.facts.kv_groups
    cache = KVCache(groups, [blocks * len(prompts)] * len(groups), block_size)
    pool = list(order(blocks * len(prompts)))
    tables = [pool[blocks * n : blocks * (n + 1)] for n in range(len(prompts))]

    def tables_of(i: int) -> list[list[int]]:
        oldest = [oldest_seen(cached[i], group.window, group.is_chunked) if group.window else 0 for group in groups]
        gone = [max(0, position) // block_size for position in oldest]
        return [[-1] * count + tables[i][count:] for count in gone]

    texts = [list(prompt) for prompt in prompts]
    cached, states = [0] * len(prompts), trunk.new_states(len(prompts))
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    while any(len(rows) < steps for rows in logits):
        active = [i for i in range(len(prompts)) if len(logits[i]) < steps]
        chunks = []
        for i in active:
            tokens, is_last = texts[i][cached[i] : cached[i] + chunk], cached[i] + chunk >= len(texts[i])
            prompt = len(prompts[i])
            piece = SequenceChunk(tokens, cached[i], tables_of(i), int(is_last), slot=i, num_prompt=prompt)
            chunks.append(piece if weights is None else replace(piece, weights=weights[i]))
        rows = iter(trunk.forward(chunks, cache, store, prefetcher, states).logits)
        for i, piece in zip(active, chunks, strict=True):
            cached[i] += len(piece.token_ids)
            if piece.num_logits:
                logits[i].append(next(rows))
                texts[i].append(int(logits[i][-1].argmax()))
    return [(text[len(p) :], torch.stack(rows)) for text, p, rows in zip(texts, prompts, logits, strict=True)]


def test_the_smallest_and_the_full_cache_give_the_expected_logits(
    checkpoint: Path, expected: list[tuple[list[int], torch.Tensor]]
) -> None:
    trunk = load_trunk(checkpoint, torch.float32)
    for host_bytes in (least_bytes(trunk.catalog, trunk.facts.top_k), trunk.catalog.total_bytes):
        store = ExpertStore(trunk.catalog, host_bytes)
        result = generate(trunk, store)
        store.close()
        for (tokens, logits), (expected_tokens, expected_logits) in zip(result, expected, strict=True):
            span = float(expected_logits.max() - expected_logits.min())
            assert float((logits - expected_logits).abs().max()) < TOLERANCE * span
            assert tokens == expected_tokens


def test_every_cache_size_gives_the_same_bits(checkpoint: Path) -> None:
    """From top-k slots to all of them, slot by slot."""
    trunk = load_trunk(checkpoint, torch.float32)
    num_experts = sum(trunk.catalog.layouts.values())
    first = None
    for num_slots in range(trunk.facts.top_k, num_experts + 1):
        store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, num_slots))
        assert store.tiers()["host"].num_slots == num_slots
        assert store.tiers()["host"].slot_bytes <= store.tiers()["host"].budget_bytes
        result = generate(trunk, store, steps=3)
        store.check_integrity()
        store.close()
        first = first or result
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(result, first, strict=True))


def assert_paging_changes_no_bit(folder: Path, device_slots: int, policy: str = "lfru") -> None:
    trunk = load_trunk(folder, torch.float32)
    whole = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    expected = generate(trunk, whole, steps=3)
    whole.close()
    store = ExpertStore(
        trunk.catalog,
        least_bytes(trunk.catalog, 4),
        device_bytes=least_bytes(trunk.catalog, device_slots) if device_slots else 0,
        policy=policy,
    )
    result = generate(trunk, store, steps=3)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(result, expected, strict=True))
    store.check_integrity()
    store.close()


@pytest.mark.parametrize("device_slots", DEVICE_SLOTS)
def test_a_device_tier_gives_the_same_bits(checkpoint: Path, device_slots: int) -> None:
    assert_paging_changes_no_bit(checkpoint, device_slots)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("device_slots", DEVICE_SLOTS)
def test_every_policy_gives_the_same_bits(tmp_path: Path, policy: str, device_slots: int) -> None:
    """A policy knows keys alone, so that one architecture shows it."""
    assert_paging_changes_no_bit(make_checkpoint("qwen3_moe", tmp_path), device_slots, policy)


def test_chunked_prefill_gives_the_expected_tokens(
    checkpoint: Path, expected: list[tuple[list[int], torch.Tensor]]
) -> None:
    """Prompts that go in three tokens at a time, mixed with decodes, end in the same text."""
    trunk = load_trunk(checkpoint, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    assert [tokens for tokens, _ in generate(trunk, store, chunk=3)] == [tokens for tokens, _ in expected]
    store.close()


def test_scattered_blocks_give_the_same_logits(checkpoint: Path) -> None:
    trunk = load_trunk(checkpoint, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    for chunk in (5, 64):
        together = generate(trunk, store, chunk)
        scattered = generate(trunk, store, chunk, order=lambda count: random.Random(1).sample(range(count), count))
        for (tokens, logits), (same_tokens, same) in zip(scattered, together, strict=True):
            assert tokens == same_tokens
            assert float((logits - same).abs().max()) < 1e-5 * float(same.max() - same.min())
    store.close()


def test_a_prefix_that_is_in_place_is_not_computed_again(
    checkpoint: Path, expected: list[tuple[list[int], torch.Tensor]]
) -> None:
    """A sequence goes on from blocks that another sequence wrote."""
    trunk = load_trunk(checkpoint, torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    groups = trunk.facts.kv_groups
    cache = KVCache(groups, [8] * len(groups), BLOCK_SIZE)
    prompt, shared = PROMPTS[2], 2 * BLOCK_SIZE
    trunk.forward([SequenceChunk([*prompt[:shared], 50, 51], 0, [[3, 1, 6]] * len(groups))], cache, store)
    result = trunk.forward([SequenceChunk(prompt[shared:], shared, [[3, 1, 5]] * len(groups))], cache, store)
    store.close()
    wanted = expected[2][1][0]
    assert float((result.logits[0] - wanted).abs().max()) < TOLERANCE * float(wanted.max() - wanted.min())


def test_experts_are_never_in_the_module(checkpoint: Path) -> None:
    """Trunk and experts together are the checkpoint; the trunk alone is less."""
    trunk = load_trunk(checkpoint, torch.float32)
    complete = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    num_bytes = sum(p.numel() * p.element_size() for p in complete.parameters())
    parameters = sum(p.numel() * p.element_size() for p in trunk._model.parameters())
    experts = sum(
        source.extent.nbytes
        for entry in trunk.catalog.layers.values()
        for recipe in entry.experts
        for part in recipe.values()
        for source in part.sources
    )
    assert parameters + experts == num_bytes
