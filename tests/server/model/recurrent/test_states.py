"""States of recurrent layers: by slot, from the beginning of a sequence, and only from steps that succeeded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from expert_store import ExpertKey, ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.recurrent.recurrent_modules import recurrent_batches
from server.model.recurrent.states import RecurrentCache, StateCache, StateKey, StateShape
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config

FIRST, SECOND = [5, 17, 99, 3, 42, 8, 64], [23, 11, 90, 90, 12]
BLOCK = 16
NATIVE = ["qwen3_next", "jamba", "kimi_linear", "lfm2_moe", "granitemoehybrid", "minimax", "nemotron_h", "zaya"]
NAMES = ["qwen3_next", "granitemoehybrid", "jamba", "minimax", "zaya", "lfm2_moe"]


class Rig:
    """Runs steps of a trunk with slots for two sequences, and returns their last logits."""

    def __init__(self, trunk: Trunk):
        self.trunk, self.store = trunk, ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
        self._cache = KVCache(trunk.facts.kv_groups, [8] * len(trunk.facts.kv_groups), BLOCK)
        self._states = trunk.new_states(4)

    def run(self, *pieces: tuple[int, Sequence[int], int], **snapshots: int) -> torch.Tensor:
        """Run slot, tokens and number of earlier tokens of each sequence; return ``(sequences, vocabulary)``."""
        tables = [[[4 * slot, 4 * slot + 1]] * len(self._cache.groups) for slot, _, _ in pieces]
        chunks = [
            SequenceChunk(tokens, num_cached, table, slot=slot, **snapshots)
            for (slot, tokens, num_cached), table in zip(pieces, tables, strict=True)
        ]
        return self.trunk.forward(chunks, self._cache, self.store, states=self._states).logits


@pytest.fixture(params=[*NAMES, *(f"{name} with native kernels" for name in NATIVE)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    name, _, is_native = request.param.partition(" ")
    if is_native and not availability().runnable:
        pytest.skip("the native kernels were not built")
    kernels = Kernels(1) if is_native else None
    trunk = load_trunk(save_checkpoint(make_config(name), tmp_path), torch.float32, pool=ComputePool(1, kernels))
    assert trunk.facts.program.has_native == bool(is_native)
    yield Rig(trunk)
    if kernels is not None:
        kernels.close()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.slow
def test_a_sequence_goes_on_from_its_own_state_wherever_it_stands_in_a_step(rig: Rig) -> None:
    alone = [rig.run((0, tokens, 0))[0] for tokens in (FIRST, SECOND)]
    rig.run((1, FIRST[:4], 0), (0, SECOND[:3], 0))
    rig.run((0, SECOND[3:4], 3), (1, FIRST[4:6], 4))
    together = rig.run((1, FIRST[6:], 6), (0, SECOND[4:], 4))
    assert_same(together[0], alone[0])
    assert_same(together[1], alone[1])


@pytest.mark.slow
def test_a_slot_forgets_the_sequence_before(rig: Rig) -> None:
    fresh = rig.run((0, SECOND, 0))
    rig.run((0, FIRST, 0))
    assert torch.equal(rig.run((0, SECOND, 0)), fresh)


@pytest.mark.slow
def test_a_sequence_goes_on_from_a_snapshot_of_another(rig: Rig) -> None:
    """The other goes on meanwhile, and so does a third in its slot."""
    expected = rig.run((0, FIRST, 0))
    rig.run((0, FIRST[:5], 0), snapshot=2)
    rig.run((0, [33, 44], 5))
    rig.run((0, FIRST[:5], 0))  # keys and values of the beginning once more
    rig.run((1, SECOND, 0))
    assert torch.equal(rig.run((0, FIRST[5:], 5), resumes=2), rig.run((0, FIRST[5:], 5), resumes=2))
    assert_same(rig.run((0, FIRST[5:], 5), resumes=2), expected)


@pytest.mark.slow
def test_a_step_that_failed_can_be_run_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are what they were before, though layers before the one that failed had gone on."""
    rig.run((0, FIRST[:5], 0))
    expected = rig.run((0, FIRST[5:], 5))
    rig.run((0, FIRST[:5], 0))
    last, lease = max(rig.trunk.catalog.layers), rig.store.lease

    def fail_in_the_last(rows: Mapping[ExpertKey, int], *args: Any, **options: Any) -> object:
        if next(iter(rows)).layer == last:
            raise OSError("the disk is gone")
        return lease(rows, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "lease", fail_in_the_last)
        patch.setattr(rig.store, "hold_residents", lambda *_, **__: None)  # so that each layer leases its experts
        with pytest.raises(OSError, match="the disk is gone"):
            rig.run((0, FIRST[5:], 5))
    assert torch.equal(rig.run((0, FIRST[5:], 5)), expected)


@pytest.mark.slow
def test_a_model_that_begins_with_a_recurrent_layer_is_right_where_the_cache_of_transformers_is_not(
    tmp_path: Path,
) -> None:
    """MiniMax's cache in transformers counts no tokens then, so it is compared without one."""
    config = make_config("minimax")
    config.layer_types = ["linear_attention", "full_attention", "linear_attention"]
    rig = Rig(load_trunk(save_checkpoint(config, tmp_path), torch.float32))
    rig.run((1, FIRST[:4], 0))
    found = rig.run((1, FIRST[4:], 4))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert_same(found[0], reference(torch.tensor([FIRST]), use_cache=False).logits[0, -1])


def test_decodes_are_one_batch_and_pieces_of_prompts_one_each() -> None:
    chunks = [
        SequenceChunk([1], 6, [], slot=3),
        SequenceChunk([1, 2], 0, [], slot=0),
        SequenceChunk([1], 0, [], slot=2),
        SequenceChunk([1], 9, [], slot=1, resumes=7),
    ]
    states = StateCache({StateKey(0, "conv"): StateShape((1,), torch.float32)}, 8)
    batches = recurrent_batches(chunks, torch.device("cpu"), states)
    found = [(batch.rows.tolist(), batch.targets.tolist(), batch.num_tokens, batch.has_state) for batch in batches]
    assert found == [([1, 2], [0], 2, False), ([3], [2], 1, False), ([0, 4], [3, 1], 1, True)]
    assert batches[2].sources.tolist() == [3, 7]


@pytest.mark.parametrize("cuts", [[7], [1, 1, 5], [2, 3, 2], [1] * 7])
def test_inputs_of_convolutions_are_kept_as_transformers_keeps_them(cuts: list[int]) -> None:
    reference, ours = transformers.cache_utils.LinearAttentionLayer(), RecurrentCache()
    for piece in torch.split(torch.randn(2, 3, 7), cuts, -1):
        expected = reference.update_conv_state(piece, conv_kernel_size=4)
        assert torch.equal(ours.update_conv_state(piece, 0, conv_kernel_size=4), expected)
        assert torch.equal(ours.states[StateKey(0, "conv")], reference.conv_states[0])


def test_states_have_a_row_a_slot_and_are_copied_out() -> None:
    key = StateKey(2, "recurrent")
    cache = StateCache({key: StateShape((3,), torch.float32)}, 4)
    cache.write(key, torch.tensor([3, 1]), torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64))
    copy = cache.read(key, torch.tensor([1, 0]))
    assert copy.tolist() == [[4, 5, 6], [0, 0, 0]]
    copy.zero_()
    assert cache.read(key, torch.tensor([1])).tolist() == [[4, 5, 6]]


def test_the_states_after_a_step_become_current_once_it_has_succeeded() -> None:
    key = StateKey(0, "recurrent")
    cache = StateCache({key: StateShape((1,), torch.float32)}, 3, num_double=2)
    chunk = SequenceChunk([1], 4, [], slot=1)
    before, after = cache.rows_of(chunk)
    cache.write(key, torch.tensor([after]), torch.tensor([[7.0]]))
    assert cache.rows_of(chunk) == (before, after)  # a step that failed is run again
    cache.advance([1])
    cache.copy(1, 2)
    assert cache.rows_of(chunk) == (after, before)
    assert cache.read(key, torch.tensor(cache.rows_of(SequenceChunk([1], 4, [], slot=2))[:1])).tolist() == [[7.0]]
