"""Runs attention modules sequence by sequence in a ragged step.

A module is called for each sequence with its rows alone, the mask of a sequence, and a cache that holds its states:
those of its tokens lie in the blocks of the KV cache. If a trial shows that it can, it takes the single new tokens of
several sequences in one call (``decode_batch``). All else of the layer runs on the rows of all sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from server.model.attention.attention_plan import slot_ranges
from server.model.attention.by_sequence.attention import as_added
from server.model.attention.by_sequence.decode_batch import (
    BatchCache,
    BatchTokens,
    PagedBatch,
    ProbedBatch,
    batches_of,
    seen_rows,
)
from server.model.attention.by_sequence.sequence_cache import LayerStandIns, SequenceCache, TokensOf
from server.model.attention.by_sequence.step_linears import StepLinears
from server.model.attention.by_sequence.token_states import PagedTokens, ProbedTokens
from server.model.attention.by_sequence.view import View
from server.model.attention.kv_cache import KVCache, KVGroup, KVShape, group_layers
from server.model.attention.mask_probe import RULE
from server.model.errors import NotBatchableError
from server.model.recurrent.recurrent_modules import (
    ModuleCall,
    StateProbe,
    have_same_outputs,
    join_batches,
    recurrent_batches,
)
from server.model.recurrent.rows import Rows, RowsOutput, join, zeros_like_output
from server.model.recurrent.states import RecurrentBatch, StepStates
from server.model.step import SequenceChunk

MASK, DISTANCE, ANGLES, ROWS = "attention_mask", "relative_distance", "position_embeddings", "hidden_states"
MASK_DIMENSIONS = 4
MOST_SCORES = 1 << 18  # scores of one head that are computed at once, which bounds their memory


class SequenceProbe(StateProbe):
    """A cache for a first pass over one sequence, which also records the modules that keep keys, and their states."""

    is_sliding: Sequence[bool] = ()

    def __init__(self, model: nn.Module):
        super().__init__()
        self.layers = SequenceCache(lambda _: None, View(), periods_of(model))
        self.layers.begin(lambda _: ProbedTokens({}, 0), 0)
        self.attentions: list[ModuleCall] = []
        self.layers_of: dict[nn.Module, list[int]] = {}  # in the cache: one for each call of a module

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        running = self._running[-1]
        if all(running.module is not call.module for call in self.attentions):
            self.attentions.append(running)
        layer = int(kwargs["layer_idx"] if "layer_idx" in kwargs else args[0])
        self.layers_of.setdefault(running.module, []).append(layer)
        return self.layers.update(key_states, value_states, *args, **kwargs)


@dataclass
class PagedSequence:
    """The tokens of one sequence in a step."""

    chunk: SequenceChunk
    batch: RecurrentBatch
    cache: KVCache
    _slots: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def is_decode(self) -> bool:
        """True if it has one new token behind others."""
        return self.chunk.num_tokens == 1 and self.chunk.num_cached > 0

    def tokens_of(self, view: View, num_cached: int, num_tokens: int) -> TokensOf:
        """Return what gives the token states of a layer in a call with some of the tokens."""

        def tokens(layer: int) -> PagedTokens:
            group = self.cache.group_of[layer]
            first = 0 if self.cache.groups[group].window is None else view.oldest(num_cached)
            slots = self.slots_of(group, first, num_cached + num_tokens)
            return PagedTokens(self.cache.layers[layer], slots, first, num_cached)

        return tokens

    def slots_of(self, group: int, first: int, last: int) -> torch.Tensor:
        """Return the slots of tokens in a group of layers, ``(tokens,)``."""
        key = group, first, last
        if key not in self._slots:
            ranges = slot_ranges(self.chunk.block_tables[group], self.cache.block_size, first, last)
            device = self.cache.device
            self._slots[key] = torch.cat([torch.arange(start, start + size, device=device) for start, size in ranges])
        return self._slots[key]


@dataclass
class SequenceStepStates(StepStates):
    """The cache that a model is called with in a step, if its attention modules run sequence by sequence."""

    is_sliding: Sequence[bool] = ()
    sequences: Sequence[PagedSequence] = ()
    _batch_slots: dict[tuple[int, View, int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> LayerStandIns:
        return LayerStandIns()

    def add_pages(self, chunks: Sequence[SequenceChunk], cache: KVCache) -> None:
        """Add the blocks that hold the states of the step's tokens."""
        batches = recurrent_batches(chunks, cache.device, self.cache, token_by_token=True)
        self.sequences = [PagedSequence(chunk, batch, cache) for chunk, batch in zip(chunks, batches, strict=True)]
        self._batch_slots = {}

    def slots_of_batch(self, layer: int, view: View, batch: Sequence[PagedSequence]) -> torch.Tensor:
        """Return the slots of the tokens that a new one of each sequence sees, ``(sequences, keys)``, these last.

        Args:
            layer: in the KV cache.
            view: of the module.
            batch: consecutive single-token sequences of a step.
        """
        group = batch[0].cache.group_of[layer]
        key = group, view, int(batch[0].batch.rows[0]), len(batch)
        if key not in self._batch_slots:
            found = []
            for each in batch:
                position = each.chunk.num_cached
                found.append(each.slots_of(group, view.oldest(position), position + 1))
            most = max(map(len, found))
            # Rows before the oldest hold a number that is finite, as the mask does not hide NaN.
            padded = [torch.cat([slots[-1:].expand(most - len(slots)), slots]) for slots in found]
            self._batch_slots[key] = torch.stack(padded)
        return self._batch_slots[key]


class SequenceModule:
    """The forward of an attention module, called for each sequence of a step.

    Args:
        call: of the module in a first pass over one sequence.
    """

    def __init__(self, call: ModuleCall):
        module: Any = call.module
        self._forward, self._sample, self._call = module.forward, call.output, call
        self._signature = inspect.signature(module.forward)
        indexer = getattr(module, "indexer", None)
        self._wants_all_angles = indexer is not None and ANGLES in inspect.signature(indexer.forward).parameters
        self._layer = int(module.layer_idx)
        self._periods, self._linears = periods_of(module), StepLinears(module)
        mask = self._named(call.args, call.kwargs).get(MASK)
        rule: Mapping[str, Any] = getattr(mask, RULE, {})
        if rule.get("is_chunked"):
            raise NotBatchableError("its attention modules run sequence by sequence, and see their own chunk alone")
        self.view = View(rule.get("sliding_window"), rule.get("sees_prompt", False))
        self._wants_mask = isinstance(mask, torch.Tensor) and mask.ndim == MASK_DIMENSIONS
        self.takes_batches = False  # single tokens of several sequences, in one call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step = next((value for value in (*args, *kwargs.values()) if isinstance(value, StepStates)), None)
        if step is None:
            return self._forward(*args, **kwargs)
        if step.returns_zeros:
            return zeros_like_output(self._sample, step.num_tokens)
        assert isinstance(step, SequenceStepStates)
        arguments = self._named(args, kwargs)
        if len(step.sequences) == 1:
            return join(self._run_sequences(arguments, step), step.num_tokens)
        with self._linears.of_step(arguments[ROWS]):
            outputs = self._run_sequences(arguments, step)
        return self._linears.finish(join(outputs, step.num_tokens))

    def _run_sequences(self, arguments: Mapping[str, Any], step: SequenceStepStates) -> list[RowsOutput]:
        decodes = [each for each in step.sequences if each.is_decode] if self.takes_batches else []
        outputs = self._run_decodes(arguments, step, decodes)
        for sequence in step.sequences:
            batch, chunk = sequence.batch, sequence.chunk
            if self.takes_batches and sequence.is_decode:
                continue
            cache = SequenceCache(step.reader(batch), self.view, self._periods)
            for first, last in _pieces(chunk.num_tokens, chunk.num_cached + chunk.num_tokens):
                step.rows_now = self._linears.rows = batch.rows[first:last]
                rows = Rows(step.num_tokens, step.rows_now, (1, last - first), cache)
                num_cached = chunk.num_cached + first
                cache.begin(sequence.tokens_of(self.view, num_cached, last - first), num_cached)
                outputs.append(self._run(arguments, rows, num_cached, chunk.num_prompt))
            step.collect(batch, cache)
        step.rows_now = None
        return outputs

    def _run_decodes(
        self, arguments: Mapping[str, Any], step: SequenceStepStates, sequences: Sequence[PagedSequence]
    ) -> list[RowsOutput]:
        """Run the new tokens of sequences that have one each, as many in a call as have few keys."""
        outputs = []
        counts = [self.view.num_seen(each.chunk.num_cached) for each in sequences]
        for numbers in batches_of(counts):
            few = [sequences[number] for number in numbers]
            batch = join_batches([each.batch for each in few])
            step.rows_now = self._linears.rows = batch.rows

            def tokens_of(layer: int, few: Sequence[PagedSequence] = few) -> BatchTokens:
                return PagedBatch(few[0].cache.layers[layer], step.slots_of_batch(layer, self.view, few))

            cache = BatchCache(step.reader(batch), tokens_of)
            rows = Rows(step.num_tokens, batch.rows, batch.size, cache)
            outputs.append(self._run_batch(arguments, rows, [counts[number] for number in numbers]))
            step.collect(batch, cache)
        return outputs

    def probe(self, num_tokens: int) -> dict[int, KVShape]:
        """Run a first pass once more in two pieces; return the shapes of what it keeps of a token, by layer.

        Args:
            num_tokens: of the pass.

        Raises:
            NotBatchableError: the pieces give something else than the whole.
        """
        all_rows, cache = torch.arange(num_tokens), SequenceCache(lambda _: None, self.view, self._periods)
        parts: dict[int, dict[int, torch.Tensor]] = {}
        arguments, outputs = self._named(self._call.args, self._call.kwargs), []
        for first, last in pairwise(sorted({0, num_tokens // 2, num_tokens})):
            cache.begin(lambda layer: ProbedTokens(parts.setdefault(layer, {}), first), first)  # noqa: B023
            rows = Rows(num_tokens, all_rows[first:last], (1, last - first), cache)
            try:
                with self._linears.watch(arguments[ROWS][:, first:last]) as results:
                    outputs.append(self._run(arguments, rows, first, num_tokens))
                    results.append(outputs[-1].output)
            except Exception as error:  # of a module that takes other arguments, of many kinds
                name = type(self._call.module).__name__
                raise NotBatchableError(f"{name} does not run on a part of a text: {error}") from error
        whole = RowsOutput(self._call.output, Rows(num_tokens, all_rows, (1, num_tokens), cache))
        if not have_same_outputs(join([whole], num_tokens), join(outputs, num_tokens)):
            raise NotBatchableError(f"{type(self._call.module).__name__} gives other results for a text in pieces")
        if any(tokens.reads_all for tokens in cache.tokens.values()):
            self.view = replace(self.view, keeps_all=True)
        self.takes_batches = self._can_take_batches(arguments, num_tokens)
        return {
            layer: KVShape(1, tokens.width, tokens.width, tokens.dtype, is_latent=True)
            for layer, tokens in cache.tokens.items()
            if isinstance(tokens, ProbedTokens)
        }

    def _can_take_batches(self, arguments: Mapping[str, Any], num_tokens: int) -> bool:
        """Return whether single tokens behind some and behind more tokens have the results of the whole in one call."""
        keeps_more = self.view.keeps_all and self.view.reach is not None
        if self.view.sees_prompt or keeps_more or self._wants_all_angles:
            return False
        lengths, all_rows = [num_tokens // 2, num_tokens - 1], torch.arange(num_tokens)
        parts: list[dict[int, dict[int, torch.Tensor]]] = [{}, {}]
        caches = []
        for length, own in zip(lengths, parts, strict=True):
            cache = SequenceCache(lambda _: None, self.view, self._periods)
            cache.begin(lambda layer: ProbedTokens(own.setdefault(layer, {}), 0), 0)  # noqa: B023
            self._run(arguments, Rows(num_tokens, all_rows[:length], (1, length), cache), 0, num_tokens)
            caches.append(cache)
        counts = [self.view.num_seen(length) for length in lengths]
        joined = BatchCache(
            lambda key: torch.cat([cache.states[key] for cache in caches]),
            lambda layer: ProbedBatch([own[layer] for own in parts], counts),
        )
        rows = Rows(num_tokens, torch.tensor(lengths), (len(lengths), 1), joined)
        try:
            found = join([self._run_batch(arguments, rows, counts)], num_tokens)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # a forward for one sequence
            return False
        whole = join([RowsOutput(self._call.output, Rows(num_tokens, all_rows, (1, num_tokens), joined))], num_tokens)
        return have_same_outputs(_rows_of(whole, lengths), _rows_of(found, lengths))

    def _run_batch(self, arguments: Mapping[str, Any], rows: Rows, counts: Sequence[int]) -> RowsOutput:
        """Run the module on a new token of each of several sequences.

        Args:
            counts: of the keys that each sees.
        """
        device = arguments[ROWS].device
        given = self._selected(arguments, rows, lambda: seen_rows(counts, device))
        if DISTANCE in arguments:
            given[DISTANCE] = torch.arange(max(counts) - 1, -1, -1, device=device)[None]
        return RowsOutput(self._forward(**given), rows)

    def _run(self, arguments: Mapping[str, Any], rows: Rows, num_cached: int, num_prompt: int) -> RowsOutput:
        """Run the module on some rows of one sequence.

        Args:
            num_cached: tokens of the sequence before them.
            num_prompt: tokens of its prompt.
        """
        num_tokens = len(rows.rows)
        device = arguments[ROWS].device
        given = self._selected(arguments, rows, lambda: self.view.seen(num_cached, num_tokens, num_prompt, device))
        if DISTANCE in arguments:
            positions = torch.arange(num_cached, num_cached + num_tokens, device=device)
            keys = torch.arange(self.view.oldest(num_cached), num_cached + num_tokens, device=device)
            given[DISTANCE] = positions[:, None] - keys
        if self._wants_all_angles:
            cache = rows.cache
            assert isinstance(cache, SequenceCache)
            given[ANGLES] = tuple(cache.keep(angles, self._layer) for angles in given[ANGLES])
        return RowsOutput(self._forward(**given), rows)

    def _selected(self, arguments: Mapping[str, Any], rows: Rows, seen: Callable[[], torch.Tensor]) -> dict[str, Any]:
        """Return the arguments of a call for some rows, but for distances.

        Args:
            seen: returns which keys they see, if the module takes a mask of them.
        """
        given = {
            name: rows.select(value)
            for name, value in arguments.items()
            if name not in {MASK, DISTANCE} or value is None
        }
        if self._wants_mask:
            given[MASK] = as_added(seen(), given[ROWS].dtype)
        elif MASK in arguments:
            given[MASK] = rows.select(arguments[MASK])
        return given

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        named = dict(self._signature.bind(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named


def run_by_sequence(probe: SequenceProbe, num_tokens: int) -> tuple[KVGroup, ...]:
    """Make the attention modules of a model run sequence by sequence; return what their layers keep of tokens.

    Args:
        probe: the cache of a first pass.
        num_tokens: of that pass.

    Raises:
        NotBatchableError: a module can't run so.
    """
    shapes: dict[int, KVShape] = {}
    windows: dict[int, int | None] = {}
    sees_prompt = False
    for call in probe.attentions:
        module: nn.Module = call.module
        split = SequenceModule(call)
        found = split.probe(num_tokens)
        first, *further = probe.layers_of[module]
        found |= dict.fromkeys(further, found[first])  # of a module that runs several times in a pass
        shapes |= found
        windows |= dict.fromkeys(found, split.view.group_window)
        sees_prompt |= split.view.sees_prompt
        module.forward = split
    return tuple(replace(group, depends_on_prompt=sees_prompt) for group in group_layers(shapes, windows))


def _rows_of(output: Any, rows: Sequence[int]) -> Any:
    """Return some rows of a module's joined output."""
    if isinstance(output, tuple):
        return tuple(_rows_of(each, rows) for each in output)
    return None if output is None else output[:, list(rows)]


def periods_of(model: nn.Module) -> dict[int, int]:
    """Return how many tokens are compressed into one key, by layer that has such keys (DeepSeek-V4)."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "compressor")]
    return {module.layer_idx: module.compressor.compress_rate for module in modules if module.compressor is not None}


def _pieces(num_tokens: int, num_keys: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the new tokens of a sequence that run at once."""
    size = max(1, MOST_SCORES // num_keys)
    for first in range(0, num_tokens, size):
        yield first, min(first + size, num_tokens)
