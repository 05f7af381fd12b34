"""Encoder-decoder models: complete prompts, and the first tokens of their decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import CheckpointError, ExpertStore, make_prefetcher
from server.model.attention.kv_cache import KVCache
from server.model.errors import ModelError
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.step import SequenceChunk, StepOutput
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import make_config
from tests.family_checks import fix_nllb_experts

PROMPT = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90, 90, 12]
ANSWER = 6  # tokens


class Rig:
    """Runs steps of a trunk with the cache of one sequence."""

    def __init__(self, folder: Path, switch_capacity: float | None = None):
        trunk = load_trunk(folder, torch.float32, switch_capacity=switch_capacity)
        assert isinstance(trunk, SequentialTrunk)
        self.trunk, self.store = trunk, ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
        self.states, self._cache = trunk.new_states(1), KVCache([], [], 16)

    def step(self, tokens: list[int], num_cached: int, num_logits: int = 1) -> StepOutput:
        chunk = SequenceChunk(tokens, num_cached, [], num_logits, num_prompt=len(PROMPT))
        return self.trunk.forward([chunk], self._cache, self.store, states=self.states)

    def answer(self) -> tuple[list[int], torch.Tensor]:
        """Return greedy tokens and the logits that chose them."""
        rows = [self.step(PROMPT, 0).logits[0]]
        tokens = [int(rows[-1].argmax())]
        while len(tokens) < ANSWER:
            rows.append(self.step(tokens[-1:], len(PROMPT) + len(tokens) - 1).logits[0])
            tokens.append(int(rows[-1].argmax()))
        return tokens, torch.stack(rows)


def checkpoint(name: str, folder: Path, **generation: Any) -> Path:
    """Save a tiny checkpoint with changes in its ``generation_config.json``."""
    save_checkpoint(make_config(name), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["switch_transformers", "nllb-moe"])
def test_a_preempted_sequence_has_the_same_logits_again(name: str, tmp_path: Path) -> None:
    """Prompt and answer go in one piece, though experts would not take so many tokens at once."""
    rig = Rig(checkpoint(name, tmp_path))
    tokens, logits = rig.answer()
    again = rig.step([*PROMPT, *tokens[:-1]], 0).logits[0]
    assert torch.equal(again, logits[-1])


@pytest.mark.slow
def test_pieces_of_a_prompt_have_no_logits_until_it_is_complete(tmp_path: Path) -> None:
    rig = Rig(checkpoint("switch_transformers", tmp_path))
    expected = rig.step(PROMPT, 0).logits
    first = rig.step(PROMPT[:5], 0, num_logits=0)
    assert first.logits.shape == (0, rig.trunk.vocab_size)
    assert not first.routing
    assert torch.equal(rig.step(PROMPT[5:], 5).logits, expected)


@pytest.mark.slow
def test_tokens_beyond_the_capacity_of_an_expert_go_to_none(tmp_path: Path) -> None:
    """Switch's router limits the tokens of each prompt; the decoder runs one token at a time."""
    rig = Rig(checkpoint("switch_transformers", tmp_path))
    routing = rig.step(PROMPT, 0).routing
    encoder, decoder = list(routing.values())[:2], list(routing.values())[2:]
    for chosen in encoder:
        assert max((chosen == expert).sum() for expert in range(4)) <= 2
        assert (chosen == 4).sum() >= len(PROMPT) - 4 * 2
    assert all(chosen.tolist() != [[4]] for chosen in decoder)


def test_a_capacity_factor_gives_what_transformers_gives_with_as_much_room(tmp_path: Path) -> None:
    """A third of the even share of 12 tokens among 4 experts is one token each."""
    rig = Rig(checkpoint("switch_transformers", tmp_path), switch_capacity=1 / 3)
    reference = load_transformers_model(tmp_path)
    num_dropped = 0

    def count(_router: Any, _args: Any, output: Any) -> None:
        nonlocal num_dropped
        num_dropped += int((output[0].sum(-1) == 0).sum())

    for module in reference.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.expert_capacity = 1
            module.register_forward_hook(count)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT]), decoder_input_ids=torch.tensor([[0]])).logits[0]
    found = rig.step(PROMPT, 0)
    torch.testing.assert_close(found.logits, expected)
    assert found.costs[0].num_dropped == num_dropped >= 2 * (len(PROMPT) - 4)


def test_experts_of_encoder_and_decoder_are_layers_of_their_own(tmp_path: Path) -> None:
    rig = Rig(checkpoint("nllb-moe", tmp_path))
    assert list(rig.trunk.catalog.layers) == [0, 1, 2]
    assert list(rig.step(PROMPT, 0).routing) == [0, 1, 2]
    assert list(rig.step([7], len(PROMPT)).routing) == [2]
    assert rig.trunk.facts.text_layers == (2,)


@pytest.mark.slow
def test_the_prefetcher_sees_what_is_written_and_no_prompt(tmp_path: Path) -> None:
    """Not even a prompt of a single token, which goes through the encoder's layers."""
    rig = Rig(checkpoint("switch_transformers", tmp_path))
    layers = dict.fromkeys(rig.trunk.facts.text_layers, 4)
    prefetcher = make_prefetcher("auto", rig.store, layers, rig.trunk.gates)
    for num_cached in range(4):
        chunk = SequenceChunk([7], num_cached, [], num_prompt=1)
        rig.trunk.forward([chunk], KVCache([], [], 16), rig.store, prefetcher, rig.states)
    assert prefetcher is not None
    assert set(prefetcher.statistics().recall) == set(layers)


@pytest.mark.slow
def test_a_forced_first_token_goes_to_the_decoder_and_not_into_the_answer(tmp_path: Path) -> None:
    """For example the token of the language to translate into."""
    folder = checkpoint("nllb-moe", tmp_path, forced_bos_token_id=77)
    tokens, _ = Rig(folder).answer()
    reference = load_transformers_model(folder)
    fix_nllb_experts(reference)
    ids = torch.tensor([PROMPT])
    text = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER + 1, do_sample=False, eos_token_id=None
    )
    assert text[0, 1] == 77
    assert tokens == text[0, 2:].tolist()


def test_a_decoder_without_a_first_token_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("nllb-moe", tmp_path, decoder_start_token_id=None, bos_token_id=None)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_start_token_id": None, "pad_token_id": None}))
    with pytest.raises(ModelError, match=r"generation_config\.json names no decoder_start_token_id"):
        load_trunk(folder, torch.float32)


def test_a_broken_generation_config_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("nllb-moe", tmp_path)
    (folder / "generation_config.json").write_text("[1, 2")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is damaged: it is not JSON"):
        load_trunk(folder, torch.float32)


@pytest.mark.slow
def test_a_checkpoint_without_a_generation_config_begins_as_its_config_says(tmp_path: Path) -> None:
    folder = checkpoint("switch_transformers", tmp_path)
    expected = Rig(folder).answer()
    (folder / "generation_config.json").unlink()
    assert Rig(folder).answer()[0] == expected[0]
