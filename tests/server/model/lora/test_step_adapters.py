"""The adapters of a step are those of its sequences, in an order that no other sequence changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.lora.adapter import LoraAdapter
from server.model.lora.step_adapters import SequenceAdapters, StepAdapters
from server.model.step import SequenceChunk

LAW, CODE = LoraAdapter("law", {}, {}), LoraAdapter("code", {}, {})


def chunk(num_tokens: int, *adapters: tuple[LoraAdapter, float]) -> SequenceChunk:
    weighted = tuple(WeightedAdapter(adapter, weight) for adapter, weight in adapters)
    return SequenceChunk(range(num_tokens), 0, [], weights=ChunkWeights(None, weighted))


def adapters_of(chunks: Sequence[SequenceChunk]) -> StepAdapters:
    adapters = StepAdapters.of(chunks)
    assert adapters is not None
    return adapters


def test_a_step_without_adapters_has_none() -> None:
    assert StepAdapters.of([SequenceChunk([1], 0, []), chunk(2)]) is None


def test_each_token_has_the_factors_of_its_sequence() -> None:
    adapters = adapters_of([chunk(2, (LAW, 0.5)), chunk(1), chunk(1, (LAW, 1.0), (CODE, -2.0))])
    assert list(adapters.adapters) == [CODE, LAW]
    assert adapters.factors.tolist() == [[0, 0.5], [0, 0.5], [0, 0], [-2, 1]]


def test_the_order_of_adapters_does_not_depend_on_the_order_of_sequences() -> None:
    chunks = [chunk(1, (LAW, 1.0)), chunk(1, (CODE, 1.0))]
    assert list(adapters_of(chunks).adapters) == list(adapters_of(chunks[::-1]).adapters)


def test_a_linear_layer_may_see_some_of_the_tokens() -> None:
    adapters = adapters_of([chunk(2, (LAW, 0.5)), chunk(1)])
    assert adapters.factors_of_linear(np.array([2, 1]), 2).tolist() == [[0], [0.5]]


def test_layers_of_one_sequence_may_see_any_number_of_rows() -> None:
    adapters = SequenceAdapters.of([chunk(1, (LAW, 0.5))])
    assert adapters is not None
    assert adapters.factors_of_linear(None, 3).tolist() == [[0.5]] * 3
    assert torch.from_numpy(adapters.factors_of_layer(0, 2)).shape == (2, 1)
