"""Encoders as a server loads them: whole sequences in one step, with experts from the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from expert_store import ExpertStore, least_bytes
from expert_store.policies import STREAM
from server.model.attention.kv_cache import KVCache
from server.model.encoders.encoder_trunk import EncoderTrunk
from server.model.encoders.image_inputs import PIXELS
from server.model.errors import ModelError
from server.model.greenroom_moe import GreenroomMoeForImageClassification, GreenroomMoeForSequenceClassification
from server.model.prompt_media import PromptMedia
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk_loader import load_trunk
from tests.server.model.greenroom_moe.test_greenroom_moe import ROUTERS, config_of

PROMPTS = [[5, 6, 7, 8, 9], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
NO_CACHE = KVCache((), (), 16)


def save(folder: Path, router_type: str, **changes: Any) -> Path:
    GreenroomMoeForSequenceClassification(config_of(router_type, **changes)).save_pretrained(folder)
    return folder


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[tuple[EncoderTrunk, ExpertStore]]:
    """Load an encoder with the fewest experts in memory."""
    trunk = load_trunk(folder, torch.float32, **options)
    assert isinstance(trunk, EncoderTrunk)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, 1))
    try:
        yield trunk, store
    finally:
        store.close()


def run(trunk: EncoderTrunk, store: ExpertStore, prompts: Sequence[Sequence[int]]) -> StepOutput:
    return trunk.forward([SequenceChunk(prompt, 0, [], 0, num_hidden=1) for prompt in prompts], NO_CACHE, store)


def labels(output: StepOutput) -> torch.Tensor:
    assert output.label_logits is not None
    return output.label_logits


@pytest.mark.parametrize("router_type", ROUTERS)
def test_sequences_of_a_step_get_the_labels_of_the_class_of_transformers(router_type: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(save(tmp_path, router_type), dtype=torch.float32).eval()
    with loaded(tmp_path) as (trunk, store), torch.inference_mode():
        found = labels(run(trunk, store, PROMPTS))
        for logits, prompt in zip(found, PROMPTS, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([prompt])).logits[0])


@pytest.mark.parametrize("router_type", ROUTERS)
def test_a_sequence_has_the_same_bits_alone_and_in_company(router_type: str, tmp_path: Path) -> None:
    save(tmp_path, router_type)
    with loaded(tmp_path, is_deterministic=True) as (trunk, store):
        together = run(trunk, store, PROMPTS)
        alone = [run(trunk, store, [prompt]) for prompt in PROMPTS]
    assert torch.equal(labels(together), torch.cat([labels(each) for each in alone]))
    assert together.hidden is not None
    assert torch.equal(together.hidden, torch.cat([each.hidden for each in alone if each.hidden is not None]))


def test_an_image_has_the_same_bits_alone_and_in_company(tmp_path: Path) -> None:
    GreenroomMoeForImageClassification(config_of("soft", image_size=8, num_channels=3)).save_pretrained(tmp_path)
    pixels = torch.rand(5, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chunks = [SequenceChunk([0] * 16, 0, [], 0, media=PromptMedia([0] * 16, {PIXELS: image})) for image in pixels]
    with loaded(tmp_path, is_deterministic=True) as (trunk, store):
        together = labels(trunk.forward(chunks, NO_CACHE, store))
        alone = [labels(trunk.forward([chunk], NO_CACHE, store)) for chunk in chunks]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("router_type", ["soft", "expert_choice"])
def test_each_sequence_is_charged_every_expert_of_such_a_router(router_type: str, tmp_path: Path) -> None:
    save(tmp_path, router_type, capacity_factor=2.0)
    with loaded(tmp_path) as (trunk, store):
        costs = run(trunk, store, PROMPTS).costs
        num_experts = sum(len(entry.experts) for entry in trunk.catalog.layers.values())
    assert [cost.num_lookups for cost in costs] == [num_experts] * len(PROMPTS)


def test_with_a_capacity_a_sequence_depends_on_its_company_and_the_dropped_tokens_are_its_own(tmp_path: Path) -> None:
    save(tmp_path, "switch")
    same = [[7] * 6, [7] * 6]  # the first takes all the room of the expert that both want
    with loaded(tmp_path, switch_capacity=1.0) as (trunk, store):
        alone, together = run(trunk, store, same[1:]), run(trunk, store, same)
    assert not torch.equal(labels(together)[1], labels(alone)[0])
    assert together.costs[1].num_dropped > together.costs[0].num_dropped


def test_a_capacity_is_refused_in_deterministic_mode(tmp_path: Path) -> None:
    save(tmp_path, "switch")
    with pytest.raises(ModelError, match="depend on the others in its step; leave out --deterministic"):
        load_trunk(tmp_path, torch.float32, is_deterministic=True, switch_capacity=1.25)


def test_a_capacity_is_refused_without_a_switch_router(tmp_path: Path) -> None:
    save(tmp_path, "top_k")
    with pytest.raises(ModelError, match=r"--switch-capacity: .* has no Switch router; leave it out"):
        load_trunk(tmp_path, torch.float32, switch_capacity=1.25)


def test_the_next_layer_is_read_while_one_is_computed_and_no_bit_changes(tmp_path: Path) -> None:
    save(tmp_path, "soft")
    with loaded(tmp_path) as (trunk, whole):
        expected = labels(run(trunk, whole, PROMPTS))
        small = ExpertStore(trunk.catalog, trunk.catalog.total_bytes // 2, policy=STREAM)
        try:
            found = [labels(run(trunk, small, PROMPTS)) for _ in range(3)]
            prefetches = small.statistics().prefetches
        finally:
            small.close()
    assert all(torch.equal(each, expected) for each in found)
    assert prefetches["used"] + prefetches["late"] > 0
    assert not prefetches["wasted"]
