"""transformers' own cache of one sequence: who has it, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import EncoderDecoderCache

from .kv_cache import KVGroup
from .states import StateCache, StateKey, StateShape, StateShapes
from .step import SequenceChunk


class LostCacheError(RuntimeError):
    """What was kept of a sequence is gone, for a step of it has failed."""


@dataclass
class Past:
    """What a model has made of a sequence's tokens so far."""

    cache: Any = None  # of the class that the model takes; it makes one at the beginning of a sequence
    num_tokens: int = 0
    prompt: list[int] = field(default_factory=list)  # as far as it has come, of a model that reads it as a whole
    encoded: Any = None  # what its encoder made of the prompt


class StockCaches(StateCache):
    """The pasts of all running sequences, by the slots that the engine gave them.

    A past that a step has begun to change is nobody's until the step is done, so that a sequence whose step failed
    can't go on from half of it.
    """

    def __init__(self) -> None:
        super().__init__({}, 0)
        self._kept: dict[int, Past] = {}

    def take(self, chunk: SequenceChunk) -> Past:
        """The past of a chunk's sequence, none at its beginning.

        Raises:
            LostCacheError: it is not what the chunk goes on from.
        """
        past = self._kept.pop(chunk.slot, Past())
        if chunk.num_cached == 0:
            return Past()
        if past.num_tokens != chunk.num_cached:
            raise LostCacheError(f"{past.num_tokens} of {chunk.num_cached} tokens are in the sequence's cache")
        return past

    def give_back(self, chunk: SequenceChunk, past: Past) -> None:
        """The chunk's tokens are in the past."""
        past.num_tokens = chunk.num_cached + chunk.num_tokens
        self._kept[chunk.slot] = past

    def release(self, slot: int) -> None:
        self._kept.pop(slot, None)


@dataclass(frozen=True)
class LayerBytes:
    """What one layer of a cache holds."""

    window: int | None  # tokens that keys and values are kept of; None for all
    within_window: int  # keys and values of a layer with a window
    other: int


def measure(past: Past) -> dict[int, LayerBytes]:
    """The bytes of a past, by layer; those that are no layer's come after the last."""
    is_pair = isinstance(past.cache, EncoderDecoderCache)
    caches = [past.cache.self_attention_cache, past.cache.cross_attention_cache] if is_pair else [past.cache]
    layers = [layer for cache in caches for layer in cache.layers]
    rest = _nbytes([value for cache in caches for name, value in vars(cache).items() if name != "layers"])
    encoded = _nbytes(list((past.encoded or {}).values()))
    return dict(enumerate([*map(_measure_layer, layers), LayerBytes(None, 0, rest + encoded)]))


def footprint(
    shorter: Mapping[int, LayerBytes], longer: Mapping[int, LayerBytes], num_tokens: int
) -> tuple[tuple[KVGroup, ...], StateShapes]:
    """What each token takes, and what a sequence takes besides, from two measurements.

    Args:
        shorter: of a sequence of ``num_tokens``.
        longer: of one of twice as many.
    """
    groups: dict[int | None, dict[int, int]] = {None: {}}  # by window, bytes a token by layer
    states = {}
    for index, before in shorter.items():
        after = longer[index]
        windowed = _growth(before.within_window, after.within_window, num_tokens)
        other = _growth(before.other, after.other, num_tokens)
        for window, nbytes in ((before.window, windowed), (None, other)):
            if nbytes:
                of_layers = groups.setdefault(window, {})
                of_layers[index] = of_layers.get(index, 0) + nbytes
        constant = before.within_window + before.other - (windowed + other) * num_tokens
        if constant > 0:
            states[StateKey(index, "stock")] = StateShape((constant,), torch.uint8)
    ordered = sorted(groups.items(), key=lambda item: item[0] or 0)
    return tuple(KVGroup(window, {}, bytes_elsewhere=of_layers) for window, of_layers in ordered), states


def _growth(before: int, after: int, num_tokens: int) -> int:
    """Bytes a token, rounded up."""
    return max(0, -(-(after - before) // num_tokens))


def _measure_layer(layer: Any) -> LayerBytes:
    total = _nbytes(vars(layer))
    window = layer.sliding_window if getattr(layer, "is_sliding", False) else None
    if window is None:
        return LayerBytes(None, 0, total)
    within = _nbytes([layer.keys, layer.values])
    return LayerBytes(int(window), within, total - within)


def _nbytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a tree of lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
