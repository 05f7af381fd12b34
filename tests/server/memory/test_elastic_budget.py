"""Memory moves from experts to blocks and back, in a store that reads real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_store import ExpertKey, ExpertStore
from server.engine.kv.block_manager import BlockManager, SequenceBlocks
from server.memory.elastic_budget import HOLD_SECONDS, REQUESTS_IN_GROWTH, ElasticBudget
from server.memory.kv_cache_plan import BLOCK_SIZE
from server.memory.plan import GROWTH_BYTES, MemoryPlan, least_budget, plan_memory
from server.settings import ServeSettings
from tests.server.memory.models import make_needs

CPU = torch.device("cpu")
MIB = 1 << 20
PROCESS = 200 * MIB
SHARED = 6 * MIB  # beyond the least, of which experts are 8


class Scene:
    """Experts, blocks and their budget, with a clock that is set by hand."""

    def __init__(self, folder: Path, **settings: object):
        needs, asked = make_needs(folder, num_experts=1024, longest=8192), ServeSettings.model_validate(settings)
        budget = least_budget(asked, needs, CPU, PROCESS) + SHARED
        self.plan: MemoryPlan = plan_memory(asked, needs, CPU, budget, PROCESS)
        self.store = ExpertStore(needs.catalog, self.plan.host_bytes, least_unpinned=needs.top_k)
        self.now = 0.0
        self.shares = ElasticBudget(self.store, self.plan, lambda: self.now)
        kv = self.plan.kv
        self.blocks = BlockManager(kv.block_groups, BLOCK_SIZE, allowance=self.shares.allowance)

    def hold(self, num_tokens: int) -> SequenceBlocks | None:
        """Allocate a sequence of so many tokens; None if it does not fit."""
        sequence = self.blocks.new_blocks()
        if not self.blocks.can_allocate(sequence, num_tokens):
            return None
        self.blocks.allocate(sequence, num_tokens)
        return sequence

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            self.shares.reclaim(self.blocks)

    @property
    def spent(self) -> int:
        """Bytes of expert slots and blocks, and of the memory reserved for a step."""
        return self.store.host_slot_bytes + self.shares.allowance.limit_bytes + self.shares.step_bytes

    @property
    def to_spend(self) -> int:
        return self.plan.budget_bytes - self.plan.fixed_bytes


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.store.close()


def test_experts_get_all_memory_that_blocks_do_not_use(scene: Scene) -> None:
    assert scene.to_spend - 8192 <= scene.spent <= scene.to_spend
    assert scene.shares.allowance.limit_bytes <= scene.plan.kv.first_bytes


@pytest.mark.slow
def test_experts_shrink_for_a_sequence_that_grows(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    assert scene.hold(8192) is not None  # 4 MiB
    assert scene.store.host_slot_bytes < before - 3 * MIB
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_a_sequence_that_does_not_fit_beside_the_minimum_of_experts_waits(scene: Scene) -> None:
    held = [scene.hold(8192) for _ in range(3)]
    assert held[0] is not None
    assert held[-1] is None
    assert scene.store.host_slot_bytes >= scene.plan.least_host_bytes - 8192
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_experts_in_use_stay_and_blocks_get_no_memory_for_them(scene: Scene) -> None:
    with scene.store.lease({ExpertKey(0, expert): 1 for expert in range(700)}) as lease:
        list(lease)
        scene.shares.grow_kv_cache(4 * MIB)
        assert scene.spent <= scene.to_spend + scene.plan.first_step_bytes


@pytest.mark.slow
def test_what_keeps_experts_in_memory_ends_before_blocks_take_theirs(scene: Scene) -> None:
    scene.store.preload(scene.store.absent(), 60)
    lease = scene.store.hold_residents()
    assert lease is not None
    scene.shares.before_growth = lambda: lease.__exit__(None, None, None)
    before = scene.shares.allowance.limit_bytes
    scene.shares.grow_kv_cache(2 * MIB)
    assert scene.shares.allowance.limit_bytes >= before + 2 * MIB
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_memory_of_ended_sequences_goes_to_experts_after_a_while(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    sequence = scene.hold(8192)
    assert sequence is not None
    scene.blocks.free(sequence)
    scene.wait(2)
    assert scene.store.host_slot_bytes < before
    scene.wait(3 * HOLD_SECONDS)
    assert scene.store.host_slot_bytes >= before - 3 * scene.plan.kv.extent_bytes
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_short_sequences_do_not_move_memory_back_and_forth(scene: Scene) -> None:
    sizes = set()
    for number in range(40):
        sequence = scene.hold(4096)
        assert sequence is not None
        scene.wait(1)
        scene.blocks.free(sequence)
        scene.wait(1)
        if number > HOLD_SECONDS:
            sizes.add(scene.store.host_slot_bytes)
    assert len(sizes) == 1


@pytest.mark.slow
def test_memory_for_a_large_step_is_reserved_before_it_and_kept(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    scene.shares.reserve_for_step(64, 1)
    assert scene.store.host_slot_bytes == before
    scene.shares.reserve_for_step(512, 1)
    smaller = scene.store.host_slot_bytes
    assert smaller < before
    scene.shares.reserve_for_step(1, 1)
    assert scene.store.host_slot_bytes == smaller
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_a_reserve_comes_from_experts_and_is_counted(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    scene.shares.set_reserve(MIB, "process", "it is tight")
    assert scene.store.host_slot_bytes <= before - MIB
    assert (scene.shares.adjustments.num_shrinks, scene.shares.adjustments.reason) == (1, "it is tight")
    scene.shares.set_reserve(0, "calm", "it is not")
    assert scene.store.host_slot_bytes == before
    assert scene.shares.adjustments.num_grows == 1


@pytest.mark.slow
def test_a_kv_cache_with_a_budget_keeps_its_size(tmp_path: Path) -> None:
    scene = Scene(tmp_path, kv_cache_memory="2MiB", max_model_len=1024)
    try:
        before = scene.store.host_slot_bytes
        sequences = [scene.hold(1024) for _ in range(5)]
        assert [sequence is not None for sequence in sequences] == [True, True, True, True, False]
        assert scene.store.host_slot_bytes == before
    finally:
        scene.store.close()


@pytest.mark.slow
def test_at_most_half_of_the_reserved_memory_is_overcommitted(scene: Scene) -> None:
    scene.shares.set_reserve(-(1 << 40), "calm", "much is left")
    assert -scene.shares.reserve_bytes == (GROWTH_BYTES + scene.plan.first_step_bytes) // 2


@pytest.mark.slow
def test_blocks_leave_pinned_experts_their_memory(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_model_len=1024)
    try:
        scene.store.pin([ExpertKey(layer, expert) for layer in range(2) for expert in range(500)])
        scene.shares.reserve_for_step(512, 64)
        while scene.hold(1024) is not None:
            pass
        assert scene.spent <= scene.to_spend
    finally:
        scene.store.close()


@pytest.mark.slow
def test_cached_prefixes_are_kept_while_reserved_memory_is_given_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, host_expert_memory="4MiB")  # which can't shrink
    try:
        sequence, token_ids = scene.hold(512), range(512)
        assert sequence is not None
        scene.blocks.cache_full_blocks(sequence, token_ids, len(token_ids))
        scene.blocks.free(sequence)
        scene.shares.set_reserve(-MIB, "calm", "much is left")
        scene.wait(3 * HOLD_SECONDS)
        assert scene.blocks.num_reusable(scene.blocks.new_blocks(), token_ids) == 512 - BLOCK_SIZE
    finally:
        scene.store.close()


@pytest.mark.slow
def test_experts_shrink_for_the_first_pass_of_prompts(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    scene.shares.reserve_for_pass()
    assert scene.store.host_slot_bytes <= before - scene.plan.pass_bytes
    assert 0 < scene.plan.pass_bytes < scene.spent <= scene.to_spend


@pytest.mark.slow
def test_experts_shrink_for_what_requests_hold_and_grow_afterwards(scene: Scene) -> None:
    before = scene.store.host_slot_bytes
    in_growth = scene.shares.make_room_for_requests(0)
    assert (in_growth, scene.store.host_slot_bytes) == (REQUESTS_IN_GROWTH, before)
    limit = scene.shares.request_limit_bytes
    assert REQUESTS_IN_GROWTH + MIB // 2 < limit < REQUESTS_IN_GROWTH + SHARED
    assert scene.shares.make_room_for_requests(limit) == limit
    assert scene.store.host_slot_bytes <= before - (limit - REQUESTS_IN_GROWTH) + scene.plan.kv.extent_bytes
    assert scene.spent + limit - REQUESTS_IN_GROWTH <= scene.to_spend
    assert scene.shares.make_room_for_requests(2 * limit) == limit
    scene.shares.make_room_for_requests(0)
    assert scene.store.host_slot_bytes >= before - scene.plan.kv.extent_bytes


@pytest.mark.slow
def test_blocks_may_still_be_allocated_while_another_thread_makes_room_for_requests(scene: Scene) -> None:
    assert scene.hold(2048) is not None
    scene.shares.grow_kv_cache(MIB)
    scene.shares.make_room_for_requests(scene.shares.request_limit_bytes)
    assert scene.shares.allowance.spare_bytes >= scene.plan.kv.extent_bytes
    assert scene.spent <= scene.to_spend


@pytest.mark.slow
def test_what_requests_hold_and_blocks_in_use_stay_inside_the_budget(scene: Scene) -> None:
    while scene.hold(1024) is not None:
        pass
    room = scene.shares.make_room_for_requests(scene.shares.request_limit_bytes)
    assert room > REQUESTS_IN_GROWTH
    assert scene.store.host_slot_bytes >= scene.plan.least_host_bytes - 8192
    assert scene.spent + room - REQUESTS_IN_GROWTH <= scene.to_spend
