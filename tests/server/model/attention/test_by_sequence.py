"""Attention modules that run sequence by sequence share steps, and keep the states of tokens in the KV cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.model import trunk_loader
from server.model.attention.by_sequence import modules
from server.model.attention.by_sequence.decode_batch import MOST_ROWS, batches_of
from server.model.attention.by_sequence.view import View
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.attention.step_checks import check_blocks_of_another, check_company_and_chunks
from tests.server.model.test_parity import PROMPTS, generate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a prompt in several pieces."""
    monkeypatch.setattr(modules, "MOST_SCORES", 1000)


def load(family: str, folder: Path) -> Trunk:
    trunk = load_trunk(make_checkpoint(family, folder), torch.float32)
    assert isinstance(trunk, Trunk)
    return trunk


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["deepseek_v4", "inkling2_loop_text", "inkling_text", "qwen4_exp_text", "unlimited_ocr"]
)
def test_company_and_chunks_change_only_rounding(family: str, tmp_path: Path) -> None:
    check_company_and_chunks(load(family, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["inkling2_loop_text", "inkling2_text"])
def test_a_module_takes_new_tokens_of_all_sequences_in_one_call(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, sizes, run = load(family, tmp_path), list[tuple[int, int]](), modules.SequenceModule._run_batch
    monkeypatch.setattr(
        modules.SequenceModule, "_run_batch", lambda *given: (sizes.append(given[2].size), run(*given))[1]
    )
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        generate(trunk, store, 64, 2)
    finally:
        store.close()
    assert sizes == [(len(PROMPTS), 1)] * sum(group.num_layers for group in trunk.facts.kv_groups)


def test_new_tokens_that_see_many_keys_run_in_several_calls() -> None:
    assert [*batches_of([3, MOST_ROWS // 2, 2, MOST_ROWS + 1, 5])] == [[0, 1], [2], [3], [4]]


@pytest.mark.slow
def test_a_sequence_continues_from_blocks_of_another(tmp_path: Path) -> None:
    """Blocks also hold what DeepSeek-V4 compresses."""
    check_blocks_of_another(load("deepseek_v4", tmp_path))


@pytest.mark.slow
def test_prefixes_are_not_shared_where_answers_see_less_than_prompts(tmp_path: Path) -> None:
    assert not load("unlimited_ocr", tmp_path).facts.shares_prefixes


@pytest.mark.slow
def test_the_cache_keeps_a_window_of_layers_that_read_no_more(tmp_path: Path) -> None:
    """The layer with a window alone keeps a key of 8 numbers; the others also what they compress."""
    groups = load("deepseek_v4", tmp_path).facts.kv_groups
    kept = {layer: (group.window, shape.dim) for group in groups for layer, shape in group.shapes.items()}
    assert kept == {0: (6, 8), 1: (None, 8 + 4 * 8 + 4 * 16), 2: (None, 8 + 2 * 8)}


def test_a_view_of_a_window_begins_with_the_oldest_key_that_the_first_token_sees() -> None:
    seen = View(3).seen(4, 2, num_prompt=5, device=CPU)
    assert seen.tolist() == [[True, True, True, False], [False, True, True, True]]


def test_a_view_of_the_prompt_and_a_window_has_all_of_the_prompt() -> None:
    seen = View(2, sees_prompt=True).seen(2, 3, num_prompt=2, device=CPU)
    assert seen.tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, False, True, True],
    ]


def test_a_model_that_must_be_deterministic_is_read_once_and_runs_one_sequence_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = list[str]()
    load = trunk_loader.load_trunk_weights
    monkeypatch.setattr(trunk_loader, "load_trunk_weights", lambda *given: (reads.append(given[-1]), load(*given)))
    trunk = load_trunk(make_checkpoint("qwen4_exp", tmp_path), torch.float32, is_deterministic=True)
    assert isinstance(trunk, SequentialTrunk)
    assert len(reads) == 1
