"""Records a model's own layers on some tokens, with experts that add nothing, or their input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.model.architecture import decoder_layers, head_of, text_body
from server.model.attention.by_sequence.attention import probe_chosen_masks, probe_sequence_masks
from server.model.attention.by_sequence.sequence_cache import LayerStandIns
from server.model.attention.indexer import few_chosen, find_pool_indexer
from server.model.attention.mask_probe import probe_masks
from server.model.blocks.block_attention import kept_rows_of, rows_around
from server.model.blocks.compressed_attention.short_periods import short_periods
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.gated_streams import flat_streams
from server.model.blocks.grouped_attention.clips import low_clips
from server.model.blocks.layer_recorder import LayerRecorder
from server.model.experts.replacements.longcat import without_identities
from server.model.hooks import AttentionOptions, use_hooks
from server.model.modules.forward import Forward
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.recurrent.states import RecurrentCache, UnsupportedCacheError
from server.model.transformers_hooks.batching_checks import COMPRESSED, RELATIVE, find_special_layers
from server.model.transformers_hooks.probe import Probe

ROPE_KIND = "rope_layer_type"  # attribute of an attention: which of several cosines and sines it takes
SHARE_CHOSEN = 3  # part of the tokens that indexers choose in a capture


@dataclass(frozen=True)
class Routing:
    """The arguments of a layer's experts."""

    hidden_states: torch.Tensor  # (tokens, hidden)
    top_k_index: torch.Tensor  # (tokens, k)
    top_k_weights: torch.Tensor


@dataclass(frozen=True)
class ChildCall:
    """A call of a child of a layer, with copies of its first input and output."""

    call: ModuleCall
    given: torch.Tensor  # (tokens, numbers)
    output: torch.Tensor

    @property
    def module(self) -> nn.Module:
        return self.call.module

    @classmethod
    def of(cls, call: ModuleCall) -> Self | None:
        """Return the call; None if it takes or returns no tensor."""
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        values = (each for each in (*call.args, *call.kwargs.values()) if isinstance(each, torch.Tensor))
        given = next(values, None)
        if given is None or not isinstance(output, torch.Tensor):
            return None
        rows, results = (tensor.reshape(-1, tensor.shape[-1]).clone() for tensor in (given, output))
        return cls(call, rows, results)


@dataclass(frozen=True)
class RotaryCall:
    """A call of a module that computes cosines and sines of positions."""

    module: Any
    num_axes: int  # of its positions; 0 if they have no such dimension
    args: tuple[Any, ...]  # after rows and positions
    kwargs: Mapping[str, Any]
    output: Any

    @classmethod
    def of(cls, call: ModuleCall) -> Self | None:
        """Return the call; None if it takes something else than rows and their positions first."""
        values = [*call.args, *(call.kwargs.pop(name) for name in ("x", "position_ids") if name in call.kwargs)]
        if len(values) < 2 or not isinstance(values[1], torch.Tensor) or values[1].is_floating_point():  # noqa: PLR2004
            return None
        num_axes = values[1].shape[0] if values[1].ndim == 3 else 0  # noqa: PLR2004
        return cls(call.module, num_axes, tuple(values[2:]), call.kwargs, call.output)

    def angles(self, positions: torch.Tensor) -> Any:
        """Return cosines and sines in float32.

        Args:
            positions: ``(positions,)``, or ``(axes, positions)`` if it has axes.
        """
        axes = positions.reshape(-1, positions.shape[-1])[-max(1, self.num_axes) :]  # the first may be that of text
        given = axes.unsqueeze(1).expand(self.num_axes, 1, -1) if self.num_axes else axes[:1]
        with torch.inference_mode():
            return self.module(torch.empty((1, 1, 1), device=positions.device), given, *self.args, **self.kwargs)


@dataclass(frozen=True)
class LayerCapture:
    """The input and output of one decoder layer."""

    given: torch.Tensor  # float32 (tokens, hidden), or (tokens, streams, hidden)
    output: torch.Tensor
    positions: Any  # cosines and sines, if the layer takes them as an argument
    options: AttentionOptions | None  # None if it has no attention
    queries: torch.Tensor  # float32 (heads, tokens, dim), as attention gets them; empty if there is none
    keys: torch.Tensor  # float32 (kv_heads, tokens, dim)
    routing: Routing | None
    calls: Sequence[ChildCall] = ()  # in order
    mixer: ModuleCall | None = None  # the one of its mixer, once that is known
    latents: torch.Tensor | None = None  # float32 (tokens, numbers) with the rotated part of keys behind (MLA)
    index_scores: torch.Tensor | None = None  # float32 (tokens, keys or pools), by which an indexer chose keys
    layer: Any = None  # the model's
    module: Any = None  # the same, or the one of several blocks of it that this is the call of

    @property
    def num_streams(self) -> int:
        """The rows of a token's residual stream; 0 if that is one row and nothing else."""
        return self.given.shape[1] if self.given.ndim == 3 else 0  # noqa: PLR2004

    @property
    def hidden_size(self) -> int:
        return self.given.shape[-1]

    @property
    def is_latent(self) -> bool:
        """True if its keys and values are made from one latent a token."""
        return self.latents is not None

    def with_mixer(self, module: nn.Module | None) -> LayerCapture:
        """Return the capture once the module of its mixer is known."""
        return replace(self, mixer=next((each.call for each in self.calls if each.module is module), None))


@dataclass(frozen=True)
class Capture:
    """A pass over some tokens."""

    layers: Sequence[LayerCapture]
    logits: torch.Tensor  # float32 (tokens, vocabulary)
    rotaries: Sequence[RotaryCall]
    head_rows: torch.Tensor | None  # float32 (tokens, hidden) that the head's module took; None if it was not called


class _PassCache(RecurrentCache):
    """A cache for tokens behind others that nobody has seen, which a model may ask for its layers around its modules.

    Args:
        first: position of the first token.
    """

    is_sliding: Sequence[bool] = ()

    def __init__(self, first: int):
        super().__init__()
        self._first = first

    @property
    def layers(self) -> LayerStandIns:
        return LayerStandIns()

    def get_query_offset(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self._first

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        del layer_idx
        return query_length, self._first


class _RankedScores(TorchFunctionMode):
    """Records what a layer ranks, which its modules do not return.

    Args:
        probe: keeps it.
    """

    def __init__(self, probe: _Probe):
        super().__init__()
        self._probe = probe

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func in (torch.topk, torch.Tensor.topk):
            self._probe.ranked.append(args[0])
        return func(*args, **(kwargs or {}))


class _Probe(Probe):
    def __init__(self, *, echoes: bool) -> None:
        super().__init__()
        self._echoes = echoes
        self.begin_layer()

    def begin_layer(self) -> None:
        self.options: AttentionOptions | None = None
        self.queries = self.keys = torch.empty(0)
        self.routing: Routing | None = None
        self.calls: list[ChildCall] = []
        self.latents: torch.Tensor | None = None
        self.ranked: list[torch.Tensor] = []  # what calls of `topk` got
        self.index_scores: torch.Tensor | None = None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        self.options, self.queries, self.keys = options, query.float(), key.float()
        if options.chosen is not None and self.ranked:
            self.index_scores = _as_rows(self.ranked)
        output = super().attend(layer, query, key, value, options)
        if layer in self.latent_layers:
            projection, latent = self._latents[layer]
            self.latents = projection.row(latent, key)[0].float()
        return output

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        self.routing = Routing(hidden_states, top_k_index, top_k_weights)
        nothing = super().run_experts(module, hidden_states, top_k_index, top_k_weights)
        if not self._echoes:
            return nothing
        return echo(hidden_states, top_k_index, top_k_weights, module.num_experts)


def _as_rows(ranked: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the scores that were ranked last, or those of all tokens if each has a call of its own."""
    latest = ranked[-1].float()
    if latest.ndim > 1:
        return latest.reshape(-1, latest.shape[-1]).clone()
    return pad_sequence([each.float() for each in ranked], batch_first=True, padding_value=-torch.inf)


def echo(
    hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, num_experts: int
) -> torch.Tensor:
    """Return the weighted sum of experts that return their input."""
    weights = (top_k_weights * (top_k_index < num_experts)).sum(-1, keepdim=True)
    return hidden_states * weights.to(hidden_states.dtype)


def _rotary_modules(body: Any) -> Iterator[nn.Module]:
    """Yield the modules of a body that compute cosines and sines of positions, alone or in a list."""
    for child in body.children():
        if child is decoder_layers(body):
            continue
        for module in child if isinstance(child, nn.ModuleList) else [child]:
            if any("inv_freq" in name for name, _ in module.named_buffers()):
                yield module


class _LayerHooks:
    """The hooks of decoder layers and their parts, which record a capture of each block.

    Args:
        probe: keeps what a block passes to attention and experts.
    """

    def __init__(self, probe: _Probe):
        self._probe, self._recorder = probe, LayerRecorder()
        self._kept: torch.Tensor | None = None  # rows that the layer takes beside its residual stream
        self.layers: list[LayerCapture] = []

    def add_to(self, layer: nn.Module) -> Iterator[RemovableHandle]:
        """Add the hooks to a layer; yield what removes them."""
        yield layer.register_forward_pre_hook(self._before, with_kwargs=True)
        yield layer.register_forward_hook(self._after)
        for _, _, part in self._recorder.parts_of(layer):
            yield part.register_forward_pre_hook(partial(self._before_part, layer), with_kwargs=True)
            yield part.register_forward_hook(self._after_part, with_kwargs=True)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder.begin(layer, _hidden_of(args, kwargs), _positions_of(layer, kwargs))
        self._kept = kept_rows_of(layer, args, kwargs)
        self._probe.begin_layer()

    def _after(self, layer: nn.Module, _args: Any, output: Any) -> None:
        self._end_block(layer, output[0] if isinstance(output, tuple) else output)
        blocks = self._recorder.blocks()
        own = self.layers[-len(blocks) :]
        self.layers[-len(blocks) :] = [replace(each, module=module) for each, module in zip(own, blocks, strict=True)]

    def _before_part(self, layer: nn.Module, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recorder.is_next(part):
            hidden = _hidden_of(args, kwargs)
            self._end_block(layer, hidden)
            self._recorder.divide(hidden)
        self._recorder.count(part)

    def _after_part(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = ChildCall.of(ModuleCall(module, args, kwargs, output))
        if call is not None:
            self._probe.calls.append(call)

    def _end_block(self, layer: nn.Module, output: torch.Tensor) -> None:
        probe, recorder = self._probe, self._recorder
        seen = probe.options, probe.queries, probe.keys, probe.routing, probe.calls
        given, output, streams = recorder.given, output[0].float().clone(), flat_streams(layer)
        if streams:
            given, output = (rows.view(len(rows), streams, -1) for rows in (given, output))
        if self._kept is not None:
            given, output = rows_around(layer, self._kept, given, output)
        block = LayerCapture(given, output, recorder.positions, *seen, layer=layer)
        self.layers.append(replace(block, latents=probe.latents, index_scores=probe.index_scores))
        probe.begin_layer()


def _positions_of(layer: nn.Module, kwargs: Mapping[str, Any]) -> Any:
    """Return the cosines and sines that a layer takes; of those by kind, the ones that its mixer selects."""
    positions = kwargs.get("position_embeddings")
    if not isinstance(positions, Mapping):
        return positions
    kinds = [getattr(child, ROPE_KIND) for child in layer.children() if hasattr(child, ROPE_KIND)]
    return positions.get(kinds[0]) if kinds else None


def _hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def capture(
    model: PreTrainedModel,
    forward: Forward,
    tokens: Sequence[int],
    first: int = 0,
    *,
    keeps_states: bool = False,
    echoes: bool = False,
) -> Capture:
    """Run the modules, and record the input and output of each layer.

    Args:
        model: with its weights.
        forward: calls the model.
        tokens: of one sequence.
        first: position of the first token.
        keeps_states: whether some layers read and write recurrent states.
        echoes: whether experts return their input instead of zeros.

    Raises:
        UnsupportedLayerError: the layers are not called one after the other with the hidden states of all tokens.
    """
    probe, few = _Probe(echoes=echoes), max(1, len(tokens) // SHARE_CHOSEN)
    layers = _LayerHooks(probe)
    rotaries: list[RotaryCall] = []

    def after_rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = RotaryCall.of(ModuleCall(module, args, kwargs, output))
        if call is not None:
            rotaries.append(call)

    head_rows: list[torch.Tensor] = []

    def before_head(_module: nn.Module, args: tuple[Any, ...]) -> None:
        head_rows.extend(each.flatten(0, -2).float() for each in args[:1])

    hooks = [each.register_forward_hook(after_rotary, with_kwargs=True) for each in _rotary_modules(text_body(model))]
    hooks += [hook for layer in decoder_layers(text_body(model)) or () for hook in layers.add_to(layer)]
    hooks.append(head_of(model).register_forward_pre_hook(before_head))
    cache = _PassCache(first) if keeps_states else None
    masks: Callable[[PreTrainedModel], AbstractContextManager[None]] = probe_masks
    if find_special_layers(model) in (COMPRESSED, RELATIVE):
        masks = probe_sequence_masks
    elif any(find_pool_indexer(module) is not None for module in model.modules()):
        cache, masks = _PassCache(first), probe_chosen_masks
    try:
        with (
            torch.inference_mode(),
            use_hooks(probe),
            masks(model),
            few_chosen(model, few),
            low_clips(model),
            short_periods(model),
            nullcontext() if echoes else without_identities(model),
            _RankedScores(probe),
        ):
            logits = forward(tokens, range(first, first + len(tokens)), range(len(tokens)), cache)
    except UnsupportedCacheError as error:
        raise UnsupportedLayerError(str(error)) from error
    except (KeyError, IndexError, TypeError) as error:
        raise UnsupportedLayerError(f"its layers are called in another way ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return Capture(layers.layers, logits, rotaries, head_rows[-1] if head_rows else None)
