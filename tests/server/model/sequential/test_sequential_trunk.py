"""Models that run one sequence after the other: the cache of each sequence, and a step that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch

from expert_store import ExpertCatalog, ExpertKey, ExpertLoadError, ExpertStore, Prefetcher
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.locate import config_folder
from server.model.chunk_weights import AdapterChooser, ChunkWeights
from server.model.errors import ModelError
from server.model.lora_adapter import LoraAdapter, LoraMatrix
from server.model.prompt_media import PromptMedia, TextInputs
from server.model.sequential.decoder_only import DecoderOnly
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.sequential.transformers_cache import LayerBytes, LostCacheError, TransformersCache, groups_and_states
from server.model.step import SequenceChunk, StepOutput
from server.model.transformers_hooks import batching_checks
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.checkpoint.test_packing import pack

FIRST, SECOND = [5, 17, 99, 3, 42, 8, 64], [23, 11]


class Rig:
    """Runs steps of a trunk with the caches of two sequences."""

    def __init__(self, folder: Path):
        trunk = load_trunk(folder, torch.float32)
        assert isinstance(trunk, SequentialTrunk)
        self.trunk, self.store = trunk, ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
        self.caches = trunk.new_states(2)
        self.cache = KVCache(trunk.facts.kv_groups, [1] * len(trunk.facts.kv_groups), 16)

    def step(self, *pieces: tuple[int, Sequence[int], int]) -> StepOutput:
        """Run slot, tokens and number of earlier tokens of each sequence in a step."""
        chunks = [SequenceChunk(tokens, num_cached, [], slot=slot) for slot, tokens, num_cached in pieces]
        return self.trunk.forward(chunks, self.cache, self.store, states=self.caches)

    def run(self, *pieces: tuple[int, Sequence[int], int]) -> torch.Tensor:
        """Return the logits of a step, ``(sequences, vocabulary)``."""
        return self.step(*pieces).logits


def damage(packed: Path, catalog: ExpertCatalog, key: ExpertKey) -> None:
    """Change a byte of one expert's record; all records have the same size."""
    (path,) = config_folder(packed).glob("*.pack")
    raw = bytearray(path.read_bytes())
    place = sum(len(entry.experts) for layer, entry in catalog.layers.items() if layer < key.layer) + key.expert
    raw[catalog.layout(key.layer).slot_bytes * place + 5] ^= 1
    path.write_bytes(raw)


def forget_cache(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    """Make pieces of this many tokens and more ignore the cache."""
    logits = DecoderOnly.logits

    def forgetful(model: DecoderOnly, chunk: SequenceChunk, past: TransformersCache) -> torch.Tensor:
        return logits(model, chunk, TransformersCache() if chunk.num_tokens >= least and chunk.num_cached else past)

    monkeypatch.setattr(DecoderOnly, "logits", forgetful)


@pytest.fixture(autouse=True)
def unknown_indexers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's indexer be of a kind that can't run sequence by sequence."""
    monkeypatch.setattr(batching_checks, "can_be_hooked", lambda _: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_config("glm_moe_dsa"), tmp_path_factory.mktemp("model") / "tiny", torch.bfloat16)


@pytest.fixture
def rig(checkpoint: Path) -> Rig:
    return Rig(checkpoint)


def test_nothing_is_allocated_for_what_transformers_keeps(rig: Rig) -> None:
    """Blocks are only counted: a latent of each token of each layer, and an index key where a layer has an indexer."""
    (group,) = rig.trunk.facts.kv_groups
    assert group.token_bytes == (2 * (16 + 16 + 8) + 16 + 8) * 4
    assert not KVCache(rig.trunk.facts.kv_groups, [1 << 40], 16).layers
    assert not rig.trunk.facts.shares_prefixes


def test_a_slot_that_is_released_keeps_nothing_and_begins_anew(rig: Rig) -> None:
    expected = rig.run((0, FIRST, 0))
    assert set(rig.caches._caches) == {0}
    rig.caches.release(0)
    assert not rig.caches._caches
    with pytest.raises(LostCacheError, match="0 of 7 tokens"):
        rig.run((0, [1], 7))
    rig.run((0, SECOND, 0))
    assert torch.equal(rig.run((0, FIRST, 0)), expected)


@pytest.mark.slow
def test_a_sequence_whose_step_failed_can_not_continue_and_the_others_do(checkpoint: Path, tmp_path: Path) -> None:
    """An expert of the last layer is damaged between the first tokens and the others."""
    packed = pack(checkpoint, tmp_path / "out")
    healthy = Rig(packed)
    last = max(healthy.trunk.catalog.layers)
    wanted, spared = (set(healthy.step((0, tokens, 0)).routing[last].ravel()) for tokens in (FIRST, SECOND))
    healthy.run((1, SECOND[:1], 0))
    expected = healthy.run((1, SECOND[1:], 1))
    rig = Rig(packed)
    rig.run((1, SECOND[:1], 0))
    damage(packed, rig.trunk.catalog, ExpertKey(last, int(min(wanted - spared))))
    with pytest.raises(ExpertLoadError):
        rig.run((0, FIRST, 0))
    with pytest.raises(LostCacheError):
        rig.run((0, [1], len(FIRST)))
    assert torch.equal(rig.run((1, SECOND[1:], 1)), expected)


def test_steps_of_many_sequences_give_what_each_gives_alone(rig: Rig) -> None:
    alone = [rig.run((0, tokens, 0))[0] for tokens in (FIRST, SECOND)]
    rig.run((1, FIRST[:4], 0), (0, SECOND[:1], 0))
    together = rig.step((0, SECOND[1:], 1), (1, FIRST[4:], 4))
    assert [len(chosen) for chosen in together.routing.values()] == [len(SECOND) - 1 + len(FIRST) - 4] * 2
    for row, expected in zip(together.logits, alone[::-1], strict=True):
        assert float((row - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


class PrefetchLog:
    """Records the calls of a prefetcher."""

    for_prompts = None

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append(name)


def test_decodes_are_shown_to_the_prefetcher_as_steps_of_one_sequence(rig: Rig) -> None:
    log = PrefetchLog()
    for tokens in ([7, 9], [8]):  # a prompt, of which it learns nothing, then a token
        chunks = [SequenceChunk(tokens, 2 * (len(tokens) == 1), [], slot=slot) for slot in range(2)]
        rig.trunk.forward(chunks, rig.cache, rig.store, cast("Prefetcher", log), rig.caches)
    told = [name for name in log.calls if name != "request"]
    assert told == ["begin_step", "observe", "observe", "end_step"] * 2
    assert set(rig.trunk.gates) == {min(rig.trunk.catalog.layers)}


def test_a_piece_of_a_prompt_with_images_is_no_decode_to_the_prefetcher(rig: Rig) -> None:
    log, media = PrefetchLog(), PromptMedia([7, 9], {}, text_inputs=TextInputs({}, {}, None))
    for place, told in enumerate([[], [], ["begin_step", "observe", "observe", "end_step"]]):
        chunk = SequenceChunk([7], place, [], media=media)
        rig.trunk.forward([chunk], rig.cache, rig.store, cast("Prefetcher", log), rig.caches)
        assert [name for name in log.calls if name != "request"] == told


@pytest.mark.slow
def test_a_model_that_ignores_its_cache_in_pieces_runs_token_by_token(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a model whose recurrence begins anew unless it is given one token."""
    expected = Rig(checkpoint).run((0, FIRST, 0))
    forget_cache(monkeypatch, least=2)
    rig = Rig(checkpoint)
    rig.run((0, FIRST[:3], 0))
    found = rig.run((0, FIRST[3:], 3))
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.slow
def test_a_model_that_forgets_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_cache(monkeypatch, least=1)
    with pytest.raises(ModelError, match="GlmMoeDsaForCausalLM can't be served: it can't continue a sequence"):
        load_trunk(checkpoint, torch.float32)


def test_bytes_of_a_layer_are_classified_by_their_growth() -> None:
    """A full layer, one with a full window, one that also compresses all tokens, and one with a state."""
    before = {
        0: LayerBytes(None, 0, 160),
        1: LayerBytes(4, 30, 0),
        2: LayerBytes(100, 80, 25),
        3: LayerBytes(None, 0, 7),
    }
    after = {
        0: LayerBytes(None, 0, 320),
        1: LayerBytes(4, 30, 0),
        2: LayerBytes(100, 160, 45),
        3: LayerBytes(None, 0, 7),
    }
    groups, states = groups_and_states(before, after, 10)
    assert [(group.window, group.bytes_elsewhere) for group in groups] == [(None, {0: 16, 2: 2}), (100, {2: 8})]
    assert {key.layer: shape.nbytes for key, shape in states.items()} == {1: 30, 2: 5, 3: 7}


def test_the_shares_of_adapters_that_a_router_chose_cover_all_tokens(rig: Rig) -> None:
    """The rows of layers do not tell their tokens, so that each has the mean of its piece."""
    name, (inputs, outputs) = next(iter(lora_targets(rig.trunk).linears.items()))
    matrices = [LoraMatrix(torch.randn(2, inputs), torch.randn(outputs, 2), 0.1) for _ in range(2)]
    router = AdapterChooser(tuple(LoraAdapter(str(place), {name: (each,)}, {}) for place, each in enumerate(matrices)))
    weights = ChunkWeights(chooser=router)
    chunks = [
        SequenceChunk(FIRST, 0, [], slot=0, wants_adapters=True, weights=weights),
        SequenceChunk(SECOND, 0, [], slot=1),
    ]
    routed, none = rig.trunk.forward(chunks, rig.cache, rig.store, states=rig.caches).routed
    assert none is None
    assert routed is not None
    assert (routed.num_tokens, sum(routed.shares.values())) == (len(FIRST), pytest.approx(len(FIRST)))
    assert sum(routed.last.values()) == pytest.approx(1)
