"""Hooks for a first pass over some tokens, which show what a model asks of attention and experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from server.kernels.expert import ExpertsModule
from server.model.attention.key_choice import IndexerCall, KeyChoice, WholeSequence, choose_of_sequence
from server.model.attention.kv_cache import KVGroup, KVShape, group_layers
from server.model.attention.mla import LatentProjection
from server.model.attention.span_attention import attend_span_reference
from server.model.attention.window import seen_keys
from server.model.errors import NotBatchableError
from server.model.experts.router import RouterSample
from server.model.hooks import AttentionOptions
from server.model.layer_kinds import LayerKinds


class Probe:
    """Hooks that run no expert and keep no state, and record their arguments."""

    def __init__(self) -> None:
        self.routed: dict[ExpertsModule, RouterSample] = {}
        self._shapes: dict[int, KVShape] = {}
        self._windows: dict[int, int | None] = {}
        self._chunked: set[int] = set()
        self.choosing: set[int] = set()  # layers whose tokens attend to the keys that an indexer chose
        self.indexed: dict[int, tuple[int, torch.dtype]] = {}  # numbers of a token that indexers keep, by layer
        self._latents: dict[int, tuple[LatentProjection, torch.Tensor]] = {}

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The layers as the native kernels keep them, with an index key behind the latent where they know it."""
        return group_layers(self._shapes_with(self._natively_kept), self._windows, self._chunked)

    @property
    def indexed_groups(self) -> tuple[KVGroup, ...]:
        """The layers as modules keep them, with index states in rows of their own."""
        return group_layers(self._shapes_with({}), self._windows, self._chunked)

    @property
    def _natively_kept(self) -> Mapping[int, int]:
        """The numbers of index keys that are kept behind latents, by layer."""
        return {layer: projection.index_dim for layer, (projection, _) in self._latents.items()}

    def _shapes_with(self, behind: Mapping[int, int]) -> Mapping[int, KVShape]:
        """Return the shapes of layers, some of whose index states lie behind their latents."""
        found = {}
        for layer, shape in self._shapes.items():
            width = self.indexed.get(layer, (0, shape.dtype))[0]
            kept = behind.get(layer, 0) if shape.is_latent else 0
            found[layer] = replace(shape, key_dim=shape.key_dim + kept, index_dim=0 if kept else width)
        return found

    @property
    def latent_layers(self) -> set[int]:
        return {layer for layer, shape in self._shapes.items() if shape.is_latent}

    @property
    def top_k(self) -> int:
        return max(sample.top_k_index.shape[-1] for sample in self.routed.values())

    @property
    def numbers(self) -> set[int]:
        """The numbers of layers with attention."""
        return set(self._shapes)

    def spread(self, kinds: LayerKinds) -> None:
        """Record of all layers what the first ones of their kinds show."""
        self.routed = kinds.spread(self.routed)
        self._shapes, self._windows = kinds.spread_numbers(self._shapes), kinds.spread_numbers(self._windows)
        self._chunked = set(kinds.spread_numbers(dict.fromkeys(self._chunked)))
        self.choosing = set(kinds.spread_numbers(dict.fromkeys(self.choosing)))
        self.indexed, self._latents = kinds.spread_numbers(self.indexed), kinds.spread_numbers(self._latents)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if layer in self._shapes and options.bias is None:  # with biases, a module runs sequence by sequence
            raise NotBatchableError(f"layer {layer} calls attention twice in one pass")
        self._shapes[layer] = KVShape(len(key), key.shape[-1], value.shape[-1], key.dtype)
        if layer in self._latents:
            projection, latent = self._latents[layer]
            if projection.makes(latent, key, value):
                self._shapes[layer] = projection.shape(key)  # without an index key
        self._windows[layer] = options.sliding_window
        if options.is_chunked:
            self._chunked.add(layer)
        if options.chosen is not None:
            self.choosing.add(layer)
        return attend_sequence(query, key, value, options)

    def expand(self, projection: LatentProjection, latent: torch.Tensor) -> torch.Tensor:
        self._latents[projection.layer] = projection, latent
        return projection.expand(latent)

    def choose_keys(self, call: IndexerCall) -> Any:
        states = WholeSequence()
        chosen = choose_of_sequence(call, states)
        if states.shape is not None:
            self.indexed[call.layer] = states.shape
        return chosen

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        del top_k_weights
        self.routed[module] = RouterSample(hidden_states, top_k_index)
        return torch.zeros_like(hidden_states)


class IsolatedTokens:
    """Hooks by which each token attends to itself alone, so that no token's results may depend on another."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        del layer, key, options
        return value.repeat_interleave(len(query) // len(value), 0).transpose(0, 1)

    def expand(self, projection: LatentProjection, latent: torch.Tensor) -> torch.Tensor:
        return projection.expand(latent)

    def choose_keys(self, call: IndexerCall) -> Any:
        return choose_of_sequence(call, WholeSequence())

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        del module, top_k_index, top_k_weights
        return torch.zeros_like(hidden_states)


def attend_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """Compute the attention of a complete sequence: ``(heads, tokens, dim)`` to ``(tokens, heads, value_dim)``."""
    positions = torch.arange(query.shape[1], device=query.device)
    seen = seen_keys(positions[:, None], positions, options.sliding_window, options.is_chunked)
    if isinstance(options.chosen, KeyChoice):
        seen = (seen & options.chosen.masks[0]).unsqueeze(1)  # (1 or kv_heads, 1, tokens, keys)
    elif options.chosen is not None:
        places = options.chosen.long()
        taken = F.pad(torch.zeros_like(seen), (0, 1)).scatter(-1, torch.where(places < 0, seen.shape[-1], places), True)
        seen = seen & taken[..., :-1]
    mask = torch.zeros(seen.shape, device=query.device).masked_fill(~seen, -torch.inf)
    if options.bias is not None:
        mask = mask + options.bias.view(len(key), -1, *options.bias.shape[1:])
    output, lse = attend_span_reference(
        query[None], key[None], value[None], options.scaling, options.softcap, mask=mask
    )
    if options.sinks is not None:
        sinks = options.sinks.float() if options.sinks.ndim > 1 else options.sinks.float()[:, None]
        output = output * (lse - sinks).sigmoid().unsqueeze(-1).to(output.dtype)
    return output[0].transpose(0, 1)
