"""A step's attention over the cache is each sequence's own attention over all its tokens."""

from __future__ import annotations

import math
import random

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.model.attention import paged_attention as attention
from server.model.attention.kv_cache import KVCache, KVShape, extent_blocks, group_layers
from server.model.attention.paged_attention import StepAttention
from server.model.attention.window import oldest_seen
from server.model.hooks import AttentionOptions
from server.model.step import SequenceChunk
from server.model.transformers_hooks.probe import attend_sequence
from tests.server.model.attention.test_span_attention import DEVICES, TOLERANCES

BLOCK_SIZE = 4
POOL = ComputePool(3)
LENGTHS = (61, 3, 130, 17)  # of the sequences
HEADS = 6
SHAPES = {
    "grouped": KVShape(2, 16, 16, torch.float32),
    "one_key_head": KVShape(1, 16, 16, torch.float32),
    "wide_keys": KVShape(3, 24, 16, torch.float32),
    "wide_values": KVShape(6, 8, 20, torch.float32),
    "latent": KVShape(1, 24, 16, torch.float32, is_latent=True),
}


@pytest.fixture(params=[False, True], ids=["one thread", "three threads"], autouse=True)
def _shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share out the spans and heads of every step, or of none."""
    monkeypatch.setattr(attention, "LEAST_SHARED_BYTES", 0 if request.param else math.inf)


class Sequences:
    """Random sequences that go through one layer of attention, some tokens a step."""

    def __init__(self, shape: KVShape, options: AttentionOptions, *, device: str = "cpu", seed: int = 0):
        self.random = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.shape, self.options = shape, options

        def draw(length: int, heads: int, dim: int) -> torch.Tensor:
            drawn = torch.randn((length, heads, dim), generator=generator)
            return drawn.to(device, shape.dtype).transpose(0, 1)

        self.queries = [draw(n, HEADS, shape.key_dim) for n in LENGTHS]
        self.keys = [draw(n, shape.kv_heads, shape.key_dim) for n in LENGTHS]
        self.values = [
            key[..., : shape.value_dim] if shape.is_latent else draw(n, shape.kv_heads, shape.value_dim)
            for n, key in zip(LENGTHS, self.keys, strict=True)
        ]
        self.device = torch.device(device)

    def alone(self) -> list[torch.Tensor]:
        """Each sequence at once, by the reference."""
        triples = zip(self.queries, self.keys, self.values, strict=True)
        return [attend_sequence(*triple, self.options) for triple in triples]

    def in_steps(self, tables: list[list[int]], longest: int) -> list[torch.Tensor]:
        """All sequences together, of each one token or up to ``longest`` a step; blocks nobody sees are given back."""
        window, is_chunked = self.options.sliding_window, self.options.is_chunked
        groups = group_layers({5: self.shape}, {5: window}, [5] if is_chunked else [])
        cache = KVCache(groups, [1 + max(map(max, tables))], BLOCK_SIZE, self.device)
        cached = [0] * len(LENGTHS)
        outputs: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
        while any(done < length for done, length in zip(cached, LENGTHS, strict=True)):
            chunks, parts = [], []
            for i, length in enumerate(LENGTHS):
                new = min(self.random.choice([1, 1, self.random.randint(1, longest)]), length - cached[i])
                if new == 0:
                    continue
                gone = 0 if window is None else max(0, oldest_seen(cached[i], window, is_chunked)) // BLOCK_SIZE
                chunks.append(SequenceChunk([0] * new, cached[i], [[-1] * gone + tables[i][gone:]]))
                parts.append((i, slice(cached[i], cached[i] + new)))
                cached[i] += new
            query, key, value = (
                torch.cat([tensors[i][:, part] for i, part in parts], 1)
                for tensors in (self.queries, self.keys, self.values)
            )
            result = StepAttention(chunks, cache, POOL).attend(5, query, key, value, self.options)
            pieces = torch.split(result, [chunk.num_tokens for chunk in chunks])
            for (i, _), piece in zip(parts, pieces, strict=True):
                outputs[i].append(piece)
        return [torch.cat(rows) for rows in outputs]


def tables_of(blocks: list[int]) -> list[list[int]]:
    """The sequences' tables, each from where the last one ends."""
    tables = []
    for length in LENGTHS:
        count = -(-length // BLOCK_SIZE)
        tables.append(blocks[:count])
        blocks = blocks[count:]
    return tables


IN_ORDER = list(range(sum(-(-length // BLOCK_SIZE) for length in LENGTHS)))
SHUFFLED = random.Random(7).sample(IN_ORDER, len(IN_ORDER))


def farthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("longest", "blocks"),
    [(7, SHUFFLED), (130, SHUFFLED), (130, IN_ORDER)],
    ids=["few_shuffled", "many_shuffled", "many_in_order"],
)
@pytest.mark.parametrize(("window", "is_chunked"), [(None, False), (5, False), (70, False), (5, True), (50, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_give_what_each_sequence_gives_alone(
    shape: str, window: int | None, is_chunked: bool, longest: int, blocks: list[int], device: str
) -> None:
    sequences = Sequences(SHAPES[shape], AttentionOptions(0.3, window, is_chunked), device=device)
    assert farthest(sequences.in_steps(tables_of(blocks), longest), sequences.alone()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_16_bits_are_as_near_as_they_can_be(shape: str, dtype: torch.dtype) -> None:
    base = SHAPES[shape]
    narrow = KVShape(base.kv_heads, base.key_dim, base.value_dim, dtype, base.is_latent)
    options = AttentionOptions(0.3)
    found = Sequences(narrow, options).in_steps(tables_of(SHUFFLED), 20)
    assert found[0].dtype == dtype
    assert farthest(found, Sequences(base, options).alone()) < 2 * TOLERANCES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("blocks", [IN_ORDER, SHUFFLED], ids=["in_order", "shuffled"])
def test_sinks_take_weight_and_a_soft_cap_bounds_scores(blocks: list[int], window: int | None) -> None:
    sinks = torch.linspace(-2, 3, HEADS)
    for options in (AttentionOptions(0.3, window, sinks=sinks), AttentionOptions(0.3, window, softcap=1.5)):
        expected = Sequences(SHAPES["grouped"], options).alone()
        found = Sequences(SHAPES["grouped"], options).in_steps(tables_of(blocks), 20)
        assert farthest(found, expected) < 1e-5


def test_a_sink_is_one_more_score_without_a_value() -> None:
    sequences = Sequences(SHAPES["grouped"], AttentionOptions(0.3, sinks=torch.linspace(-2, 3, HEADS)))
    query, key, value = sequences.queries[0][:, -1:], sequences.keys[0], sequences.values[0]
    scores = query @ key.repeat_interleave(3, 0).mT * 0.3  # (heads, 1, keys)
    scores = torch.cat([scores, torch.linspace(-2, 3, HEADS).view(-1, 1, 1)], -1)
    expected = scores.softmax(-1)[..., :-1] @ value.repeat_interleave(3, 0)
    assert torch.allclose(sequences.alone()[0][-1], expected[:, 0], atol=1e-6)


def test_a_prefix_is_read_where_another_sequence_wrote_it() -> None:
    """Two tables may share blocks: what the second does not compute it finds."""
    sequences = Sequences(SHAPES["grouped"], AttentionOptions(0.3))
    query, key, value = sequences.queries[0], sequences.keys[0], sequences.values[0]
    cache = KVCache(group_layers({0: sequences.shape}, {0: None}), [40], BLOCK_SIZE)
    first = list(range(5, 5 + 16))
    second = [*first[:10], 30, 29, 28, 27, 26, 25]
    for table, start in ((first, 0), (second, 40)):
        chunk = SequenceChunk([0] * (61 - start), start, [table])
        part = slice(start, None)
        step = StepAttention([chunk], cache, POOL)
        found = step.attend(0, query[:, part], key[:, part], value[:, part], sequences.options)
        assert torch.allclose(found, sequences.alone()[0][start:], atol=1e-5)


def test_layers_are_grouped_by_their_window_full_attention_first() -> None:
    shape = SHAPES["grouped"]
    groups = group_layers(dict.fromkeys(range(5), shape), {0: 8, 1: None, 2: 4, 3: 8, 4: None})
    assert [(group.window, list(group.shapes)) for group in groups] == [(None, [1, 4]), (4, [2]), (8, [0, 3])]
    mixed = group_layers(dict.fromkeys(range(5), shape), {0: 8, 1: None, 2: 4, 3: 8, 4: None}, chunked=[3])
    assert [(group.window, group.is_chunked) for group in mixed] == [(None, False), (4, False), (8, False), (8, True)]
    extent = extent_blocks(groups[0], BLOCK_SIZE)
    cache = KVCache(groups, [extent, 2 * extent, 3 * extent], BLOCK_SIZE)
    num_extents = [cache.layers[layer].keys.shape[2] // (extent * BLOCK_SIZE) for layer in range(5)]
    assert num_extents == [3, 1, 2, 3, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_of_a_token_are_those_of_the_tensors(shape: str) -> None:
    groups = group_layers({0: SHAPES[shape]}, {0: None})
    num_blocks = extent_blocks(groups[0], BLOCK_SIZE)  # a cache has whole extents
    layer = KVCache(groups, [num_blocks], BLOCK_SIZE).layers[0]
    tensors = [layer.keys] if layer.keys is layer.values else [layer.keys, layer.values]
    assert sum(tensor.nbytes for tensor in tensors) == num_blocks * BLOCK_SIZE * SHAPES[shape].token_bytes
