"""The adapters of a step are those of its sequences, in an order that no other sequence changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from server.model.adapters.prototypes import prototype
from server.model.adapters.step_adapters import SequenceAdapters, StepAdapters
from server.model.chunk_weights import AdapterChooser, ChosenAdapters, ChunkWeights, WeightedAdapter
from server.model.lora_adapter import LoraAdapter, LoraMatrix
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
    assert adapters.factors_of_linear("head", np.array([2, 1]), torch.zeros(2, 4)).tolist() == [[0], [0.5]]


def test_layers_of_one_sequence_may_see_any_number_of_rows() -> None:
    adapters = SequenceAdapters.of([chunk(1, (LAW, 0.5))])
    assert adapters is not None
    assert adapters.factors_of_linear("head", None, torch.zeros(3, 4)).tolist() == [[0.5]] * 3
    assert torch.from_numpy(adapters.factors_of_layer(0, 2)).shape == (2, 1)


def along(name: str, axis: int) -> LoraAdapter:
    """Return an adapter of the layer ``q`` whose prototype is an axis of its four inputs."""
    down = torch.zeros(2, 4)
    down[1, axis] = 3.0
    return LoraAdapter(name, {"q": (LoraMatrix(down, torch.ones(5, 2), 1.0),)}, {})


def test_a_router_adds_the_softmax_of_the_best_scores_and_counts_the_tokens() -> None:
    """The second row scores 1, 2 and 2: of two equal adapters, the first by name is chosen."""
    first, second, third = adapters = [along(name, axis) for axis, name in enumerate("abc")]
    router = AdapterChooser((third, first, second), top_k=1)
    routed = SequenceChunk([1], 0, [], weights=ChunkWeights(None, (WeightedAdapter(third, 0.5),), router))
    step = adapters_of([chunk(1, (first, 2.0)), routed])
    assert list(step.adapters) == adapters
    x = torch.tensor([[9.0, 9.0, 9.0, 9.0], [1.0, -2.0, 2.0, 9.0]])
    assert step.factors_of_linear("q", None, x).tolist() == [[2, 0, 0], [0, 1, 0.5]]
    assert step.factors_of_linear("other", None, x).tolist() == [[2, 0, 0], [0, 0, 0.5]]
    assert step.choices is not None
    assert step.choices.chosen([chunk(1), routed]) == [None, ChosenAdapters({"a": 0.0, "b": 1.0, "c": 0.0}, 1)]


def test_a_chunk_that_wants_it_has_the_mean_factors_of_its_last_token() -> None:
    """Two layers choose different adapters for the last token; a fixed factor adds to that of a router."""
    router = AdapterChooser((along("a", 0), along("b", 1)), top_k=1)
    weights = ChunkWeights(None, (WeightedAdapter(LAW, 0.5), WeightedAdapter(router.adapters[0], 2.0)), router)
    wanting = SequenceChunk([1, 2], 0, [], wants_adapters=True, weights=weights)
    step = adapters_of([wanting])
    assert step.choices is not None
    for last in ([1.0, 3.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]):
        step.factors_of_linear("q", None, torch.tensor([[1.0, 0.0, 0.0, 0.0], last]))
    (routed,) = step.choices.chosen([wanting])
    assert routed == ChosenAdapters({"a": 1.5, "b": 0.5}, 2, {"a": 0.5, "b": 0.5})
    assert weights.adapters_of_last(routed) == {"a": 2.5, "b": 0.5, "law": 0.5}


def test_the_tokens_of_a_sequence_alone_share_the_mean_of_all_rows() -> None:
    router = AdapterChooser((along("a", 0), along("b", 1)), top_k=1)
    piece = SequenceChunk([1, 2], 0, [], wants_adapters=True, weights=ChunkWeights(chooser=router))
    adapters = SequenceAdapters.of([piece])
    assert adapters is not None
    adapters.factors_of_linear("q", None, torch.eye(4)[[0, 0, 0, 1]])
    assert adapters.routed(piece) == ChosenAdapters({"a": 1.5, "b": 0.5}, 2, {"a": 0.75, "b": 0.25})


def test_what_a_router_chose_for_the_pieces_of_a_sequence_adds_up() -> None:
    first, later = (
        ChosenAdapters({"a": 1.5, "b": 0.5}, 2, {"a": 1.0}),
        ChosenAdapters({"b": 1.0, "c": 0.0}, 1, {"b": 1.0}),
    )
    assert first + later == ChosenAdapters({"a": 1.5, "b": 1.5, "c": 0.0}, 3, {"b": 1.0})


def test_an_adapter_that_adds_nothing_has_no_direction() -> None:
    matrix = LoraMatrix(torch.ones(2, 4), torch.zeros(5, 2), 1.0)
    assert prototype([matrix]).tolist() == [0, 0, 0, 0]


def test_parts_of_one_addition_have_the_prototype_of_the_whole() -> None:
    down, up = torch.randn(3, 6), torch.randn(8, 3)
    parts = [LoraMatrix(down, up[:5], 1.0), LoraMatrix(down, up[5:], 1.0, 5)]
    torch.testing.assert_close(prototype(parts).abs(), prototype([LoraMatrix(down, up, 1.0)]).abs())
