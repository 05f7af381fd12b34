"""transformers' own cache of each sequence, and the bytes that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import EncoderDecoderCache

from server.model.attention.kv_cache import KVGroup
from server.model.recurrent.states import StateCache, StateKey, StateShape, StateShapes
from server.model.step import SequenceChunk


class LostCacheError(RuntimeError):
    """The cache of a sequence is gone, since a step of it has failed."""


@dataclass
class TransformersCache:
    """The cache of one sequence: all that a model needs of the tokens so far."""

    layers: Any = None  # transformers' cache object; the model makes it at the beginning of a sequence
    num_tokens: int = 0
    prompt: list[int] = field(default_factory=list)  # the prompt so far, for an encoder that needs all of it
    encoded: Any = None  # the encoder's output for the prompt


class TransformersCaches(StateCache):
    """The caches of all running sequences, by the slots that the engine assigned.

    A step removes a cache while it changes it, so that a sequence whose step failed can't continue from half of it.
    """

    def __init__(self) -> None:
        super().__init__({}, 0)
        self._caches: dict[int, TransformersCache] = {}

    def pop(self, chunk: SequenceChunk) -> TransformersCache:
        """Remove and return the cache of a chunk's sequence; it is empty at the beginning of a sequence.

        Raises:
            LostCacheError: the tokens before the chunk are not in the cache.
        """
        cache = self._caches.pop(chunk.slot, TransformersCache())
        if chunk.num_cached == 0:
            return TransformersCache()
        if cache.num_tokens != chunk.num_cached:
            raise LostCacheError(f"{cache.num_tokens} of {chunk.num_cached} tokens are in the sequence's cache")
        return cache

    def put(self, chunk: SequenceChunk, cache: TransformersCache) -> None:
        """Put a cache back, with the chunk's tokens in it."""
        cache.num_tokens = chunk.num_cached + chunk.num_tokens
        self._caches[chunk.slot] = cache

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)


@dataclass(frozen=True)
class LayerBytes:
    """The bytes in one layer of a cache."""

    window: int | None  # tokens whose keys and values are kept; None for all
    within_window: int  # bytes of keys and values in a layer with a window
    other: int


def measure_layers(cache: TransformersCache) -> dict[int, LayerBytes]:
    """Return the bytes of a cache by layer, with those outside of any layer after the last."""
    is_pair = isinstance(cache.layers, EncoderDecoderCache)
    caches = [cache.layers.self_attention_cache, cache.layers.cross_attention_cache] if is_pair else [cache.layers]
    layers = [layer for cache in caches for layer in cache.layers]
    rest = _nbytes([value for cache in caches for name, value in vars(cache).items() if name != "layers"])
    encoded = _nbytes(list((cache.encoded or {}).values()))
    return dict(enumerate([*map(_measure_layer, layers), LayerBytes(None, 0, rest + encoded)]))


def groups_and_states(
    shorter: Mapping[int, LayerBytes], longer: Mapping[int, LayerBytes], num_tokens: int
) -> tuple[tuple[KVGroup, ...], StateShapes]:
    """Return the bytes of each token, by layers of one window, and the constant bytes of a sequence.

    Args:
        shorter: layers of a sequence of ``num_tokens``.
        longer: layers of a sequence of twice as many.
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
            states[StateKey(index, "transformers")] = StateShape((constant,), torch.uint8)
    ordered = sorted(groups.items(), key=lambda item: item[0] or 0)
    return tuple(KVGroup(window, {}, bytes_elsewhere=of_layers) for window, of_layers in ordered), states


def _growth(before: int, after: int, num_tokens: int) -> int:
    """Return the bytes a token, rounded up."""
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
    """Yield the tensors in a tree of lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
