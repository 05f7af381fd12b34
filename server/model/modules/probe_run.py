"""A first pass of some tokens through a model: what its layers ask for, and whether many sequences can share a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.batch_invariant import batch_invariant
from server.kernels.expert import ExpertsModule
from server.kernels.invariant_matmul import NotInvariantError
from server.model.architecture import text_part
from server.model.attention.by_sequence.attention import probe_sequence_masks
from server.model.attention.by_sequence.modules import SequenceProbe, SequenceStepStates, run_by_sequence
from server.model.attention.mask_probe import probe_masks
from server.model.errors import ModelError, NotBatchableError
from server.model.experts.next_layer_gate import find_routers
from server.model.experts.router import RouterWeights
from server.model.hooks import use_hooks
from server.model.layer_kinds import LayerKinds
from server.model.lora.linear_hooks import LinearCalls, watch_linears
from server.model.lora.router_hooks import RouterCalls, watch_routers
from server.model.modules.forward import Forward
from server.model.recurrent.recurrent_modules import ModuleCall, StateProbe, recurrent_batches, split_recurrent_modules
from server.model.recurrent.states import StateKey, StateShapes, StepStates
from server.model.step import SequenceChunk
from server.model.transformers_hooks.batching_checks import find_cross_token_module, varies_with_batch
from server.model.transformers_hooks.probe import IsolatedTokens, Probe

PROBE_TOKENS = 17  # enough to show which scores a router chooses by, and unlike any other size in a model


class ProbeRun:
    """A record of what some tokens show of a model with its weights.

    Args:
        model: the model.
        forward: calls it.
        size: of its vocabulary or its context, the smaller one.
        is_by_sequence: whether its attention modules run sequence by sequence.
        is_native: whether the native kernels run it. Then it was checked on its twin, and only one layer of each kind
            runs here, which shows what all of them ask for.

    Attributes:
        tokens: those that it was run on.
        probe: what attention and experts were asked for.
        kv_groups: what modules keep of tokens, by layers with the same window.
        states: the states that recurrent modules keep.
        recurrent: these modules.
        linear_calls, router_calls: how linear layers and routers were called.

    Raises:
        ModelError: the model's experts can't be paged.
        NotBatchableError: the model can't run many sequences in one step.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        forward: Forward,
        size: int,
        *,
        is_by_sequence: bool = False,
        is_native: bool = False,
    ):
        self._model, self._forward, self._is_by_sequence = model, forward, is_by_sequence
        count = min(PROBE_TOKENS, size)
        spread = size // count
        self.tokens: Sequence[int] = range(0, count * spread, spread)
        self._kinds = LayerKinds(model) if is_native else None
        state_probe = self._run()
        if self._kinds is not None and not self._kinds.covers([*self.probe.numbers, *_numbers(state_probe.shapes)]):
            self._kinds = None  # its layers have numbers of another kind
            state_probe = self._run()
        self.states: StateShapes = state_probe.shapes
        calls = state_probe.calls
        if self._kinds is not None:
            calls = self._spread(self._kinds, calls)
        split_recurrent_modules(calls, count)
        self.recurrent: list[nn.Module] = [call.module for call in calls]
        self.kv_groups = self.probe.indexed_groups
        if isinstance(state_probe, SequenceProbe):
            groups = run_by_sequence(state_probe, count)
            self.kv_groups = groups if self._kinds is None else tuple(map(self._kinds.spread_group, groups))
        if not is_native:
            self._check_batches()

    def find_routers(self, layers: Mapping[ExpertsModule, int]) -> dict[int, RouterWeights]:
        """Return the router of each layer of experts that tokens of text go to, where one can be found.

        Args:
            layers: the experts modules and their layers.
        """
        kinds, routed = self._kinds, self.probe.routed
        if kinds is None:
            return find_routers(self._model, layers, routed)
        found = find_routers(self._model, layers, {each: routed[each] for each in routed if kinds.has_first(each)})
        return kinds.spread_routers(found, layers)

    def _run(self) -> StateProbe:
        """Run the tokens through the model, or through one layer of each kind."""
        model, count = self._model, len(self.tokens)
        self.probe, state_probe = Probe(), SequenceProbe(model) if self._is_by_sequence else StateProbe()
        self.linear_calls: LinearCalls
        self.router_calls: RouterCalls
        with (
            nullcontext() if self._kinds is None else self._kinds.first_alone(),
            use_hooks(self.probe),
            probe_sequence_masks(model) if self._is_by_sequence else probe_masks(model),
            state_probe.track_modules(text_part(model)),
            watch_linears(model) as self.linear_calls,
            watch_routers(model) as self.router_calls,
        ):
            self._forward(self.tokens, range(count), [0], state_probe)
        return state_probe

    def _spread(self, kinds: LayerKinds, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
        """Record of all layers what the first ones of their kinds show; returns their calls of recurrent modules."""
        self.probe.spread(kinds)
        self.linear_calls, self.router_calls = kinds.spread(self.linear_calls), kinds.spread(self.router_calls)
        by_number: dict[int, StateShapes] = defaultdict(dict)
        for key, shape in self.states.items():
            by_number[key.layer] = {**by_number[key.layer], key: shape}
        self.states = {
            key._replace(layer=number): shape
            for number, shapes in kinds.spread_numbers(by_number).items()
            for key, shape in shapes.items()
        }
        spread = kinds.spread({call.module: call for call in calls})
        return [replace(call, module=module) for module, call in spread.items()]

    @torch.inference_mode()
    def check_invariance(self) -> None:
        """Raise ``ModelError`` if a token's results depend on the number of tokens beside it."""
        try:
            with use_hooks(IsolatedTokens()), batch_invariant():
                varies = varies_with_batch(self.tokens, self._isolated_logits)
        except NotInvariantError as error:
            raise ModelError(str(error)) from error
        if varies:
            raise ModelError(f"{type(self._model).__name__} is not batch-invariant; remove `--deterministic`")

    def _check_batches(self) -> None:
        """Raise unless experts can be paged, and tokens of different sequences don't mix."""
        name, probe = type(self._model).__name__, self.probe
        if not probe.routed:
            raise ModelError(f"{name} does not use transformers' experts interface, so its experts can't be paged")
        if not self.kv_groups:
            raise NotBatchableError(f"{name} does not use transformers' attention interface")
        with use_hooks(IsolatedTokens()), probe_masks(self._model) if probe.choosing else nullcontext():
            module = find_cross_token_module(
                self._model, self.tokens, lambda given: self._isolated_logits(given, range(len(self.tokens)))
            )
        if module is not None:
            raise NotBatchableError(
                f"{name} mixes tokens outside of its attention (by recurrence or convolution, up to {module})"
            )

    def _isolated_logits(self, token_ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Return logits ``(tokens, vocabulary)`` where no token sees another; recurrent modules return zeros."""
        states = None
        if self.recurrent or self._is_by_sequence:
            batches = recurrent_batches([SequenceChunk(token_ids, 0, [])], self._model.device, None)
            states = (SequenceStepStates if self._is_by_sequence else StepStates)(batches, returns_zeros=True)
        return self._forward(token_ids, positions, range(len(token_ids)), states)


def _numbers(shapes: Iterable[StateKey]) -> set[int]:
    """Return the numbers of the layers that keep states."""
    return {key.layer for key in shapes}
