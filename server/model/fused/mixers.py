"""Recurrent mixers of a CUDA device whose steps of single tokens are one launch or two between two products."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.gated_delta_net.parts import GatedDeltaNetParts
from server.model.blocks.linears import Linear
from server.model.blocks.mamba2.parts import Mamba2Parts
from server.model.blocks.recurrent.mixer import CONV, RECURRENT, epsilon_of
from server.model.blocks.short_convolution.parts import ShortConvolutionParts
from server.model.fused.joined_linears import JoinedLinears
from server.model.fused.samples import is_near, sample_of
from server.model.recurrent.recurrent_modules import ModuleCall, SplitForward
from server.model.recurrent.rows import Rows
from server.model.recurrent.states import RecurrentBatch, RecurrentCache, StateCache, StateKey, StateShapes

if TYPE_CHECKING:
    from server.model.blocks.recurrent.triton_step import Convolution
    from server.model.blocks.recurrent.triton_step import Rows as StateRows

log = logging.getLogger(__name__)

TRIED = 2  # sequences of a trial
CONV_DIMENSIONS, STATE_DIMENSIONS = 2, 3  # of one sequence's states


class FusedMixer(ABC):
    """Steps of single tokens of one mixer.

    Args:
        layer: of the states.
        linears: that project its input.
        output: projects what it makes of them.
    """

    def __init__(self, layer: int, linears: Sequence[Linear], output: Linear):
        self._conv, self._state = StateKey(layer, CONV), StateKey(layer, RECURRENT)
        self._inputs, self._output = JoinedLinears(linears), output

    @property
    def has_hooks(self) -> bool:
        """True if something is added to a projection."""
        return self._inputs.has_hooks

    def join(self) -> None:
        """Let one product compute the projections."""
        self._inputs.join()

    def run(self, hidden_states: torch.Tensor, states: StateCache, batch: RecurrentBatch) -> torch.Tensor:
        """Return the output for a token of each sequence, ``(sequences, 1, hidden)``; write the states after it."""
        from server.model.blocks.recurrent.triton_step import Rows as StateRows  # noqa: PLC0415  may not be installed

        projected = self._inputs(hidden_states.flatten(0, 1))
        conv = states.tensor(self._conv)
        state = states.tensor(self._state) if states.has(self._state) else conv
        found = self.step(projected, StateRows(conv, state, batch.sources, batch.targets))
        output: torch.Tensor = self._output(found.unsqueeze(1))
        return output

    @abstractmethod
    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        """Return what the output projection is given, ``(sequences, numbers)``."""


class FusedShortConvolution(FusedMixer):
    """A short convolution."""

    def __init__(self, parts: ShortConvolutionParts):
        super().__init__(parts.module.layer_idx, [parts.input], parts.output)
        self._convolution = _convolution(parts.convolution)

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        from server.model.blocks.short_convolution.triton_step import step_convolution  # noqa: PLC0415  may not be installed

        return step_convolution(projected, self._convolution, rows)


class FusedGatedDeltaNet(FusedMixer):
    """A gated delta net."""

    def __init__(self, parts: GatedDeltaNetParts):
        from server.model.blocks.gated_delta_net.triton_step import VALUES, GatedDelta  # noqa: PLC0415  as above
        from server.model.blocks.recurrent.triton_step import MOST_STATE  # noqa: PLC0415  as above

        module = parts.module
        super().__init__(module.layer_idx, parts.inputs, parts.output)
        heads, key_dim, value_dim = module.num_k_heads, module.head_k_dim, module.head_v_dim
        shared = module.num_v_heads // heads
        keys, values = heads * key_dim, heads * shared * value_dim
        if key_dim * VALUES > MOST_STATE or module.conv1d.bias is not None:
            raise UnsupportedLayerError("no kernel has its states")
        wide = shared * value_dim  # of a key head
        if parts.are_together:
            step = 2 * (key_dim + wide)
            scalars = heads * step
            places = 0, step, key_dim, step, 2 * key_dim, step, scalars, scalars + shared, 2 * shared
            gates = 2 * key_dim + wide, step
        else:
            gates = 2 * keys + values, wide
            scalars = gates[0] + values
            places = 0, key_dim, keys, key_dim, 2 * keys, wide, scalars, scalars + heads * shared, shared
        self._delta = GatedDelta(
            _convolution(module.conv1d), heads, shared, key_dim, value_dim, places, gates,
            -module.A_log.detach().float().exp(), module.dt_bias.detach().float(), module.norm.weight.detach().float(),
            epsilon_of(module.norm),
        )  # fmt: skip

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        return self._delta.step(projected, rows)


class FusedMamba2(FusedMixer):
    """Mamba-2."""

    def __init__(self, parts: Mamba2Parts):
        from server.model.blocks.mamba2.triton_step import Mamba2  # noqa: PLC0415  as above
        from server.model.blocks.recurrent.triton_step import MOST_NORMED, MOST_STATE  # noqa: PLC0415  as above

        module = parts.module
        super().__init__(module.layer_idx, [parts.input], parts.output)
        heads, head_dim, state_size = module.num_heads, module.head_dim, module.ssm_state_size
        norm_size = getattr(module.norm, "group_size", heads * head_dim)
        if head_dim * state_size > MOST_STATE or norm_size > MOST_NORMED:
            raise UnsupportedLayerError("no kernel has its states")
        least, longest = getattr(module, "time_step_limit", None) or (0.0, math.inf)
        self._mamba = Mamba2(
            _convolution(module.conv1d), heads, head_dim, module.n_groups, state_size,
            -module.A_log.detach().float().exp(), module.dt_bias.detach().float(), module.D.detach().float(),
            module.norm.weight.detach().float(), norm_size, epsilon_of(module.norm), float(least), float(longest),
        )  # fmt: skip

    def step(self, projected: torch.Tensor, rows: StateRows) -> torch.Tensor:
        return self._mamba.step(projected, rows)


def fuse_mixers(calls: Sequence[ModuleCall], device: torch.device | None, states: StateShapes) -> int:
    """Let recurrent mixers run steps of single tokens by kernels; return how many do.

    A mixer does if it is of a known kind by its parts, and if the kernels give the results and states of a copy of its
    module with other weights.

    Args:
        calls: of modules that keep a state, with the tokens of one sequence.
        device: where Triton's kernels run; None for nowhere.
        states: of one sequence.
    """
    if device is None or not runs_on(device):
        return 0
    count, agreed = 0, dict[Hashable, bool]()  # by kind of module, of which there are as many as layers
    for call in calls:
        split = call.module.forward
        if not isinstance(split, SplitForward):
            continue
        try:
            fused = _find(call.module)
            if fused is None:
                continue
            kind = type(call.module), tuple(tuple(each.shape) for each in call.module.parameters())
            if kind not in agreed:
                agreed[kind] = _agrees(call, states)
            if agreed[kind]:
                fused.join()
                split.fused = fused
                count += 1
        except (UnsupportedLayerError, RuntimeError) as error:  # torch's, of a copy that can't run
            log.debug("a %s runs as a module: %s", type(call.module).__name__, error)
    log.info("%d recurrent mixers run steps by kernels", count)
    return count


def _find(module: nn.Module) -> FusedMixer | None:
    if isinstance(delta := GatedDeltaNetParts.find(module, keeps_state=True), GatedDeltaNetParts):
        return FusedGatedDeltaNet(delta)
    if isinstance(mamba := Mamba2Parts.find(module, keeps_state=True), Mamba2Parts):
        return FusedMamba2(mamba)
    if isinstance(convolution := ShortConvolutionParts.find(module, keeps_state=True), ShortConvolutionParts):
        return FusedShortConvolution(convolution)
    return None


def _convolution(module: nn.Conv1d) -> Convolution:
    from server.model.blocks.recurrent.triton_step import Convolution  # noqa: PLC0415  may not be installed

    bias = None if module.bias is None else module.bias.detach()
    return Convolution(module.weight.detach().squeeze(1).contiguous(), bias)


@torch.inference_mode()
def _agrees(call: ModuleCall, states: StateShapes) -> bool:
    """Return whether the steps of a copy of a mixer give what its module gives for some rows after random states."""
    layer: Any = call.module
    shapes = {key: replace(shape, dtype=torch.float32) for key, shape in states.items() if key.layer == layer.layer_idx}
    if any(key.number or key.kind not in {CONV, RECURRENT} for key in shapes) or not _have_rows(shapes):
        return False
    sample, generator = sample_of(layer), torch.Generator().manual_seed(0)
    fused, split = _find(sample), sample.forward
    assert fused is not None
    call = ModuleCall(
        sample,
        tuple(_random_like(each, generator) for each in call.args),
        {name: _random_like(each, generator) for name, each in call.kwargs.items()},
    )
    hidden = _hidden_of(call)
    rows = torch.arange(TRIED, device=hidden.device)
    cache = StateCache(shapes, TRIED, hidden.device, num_double=TRIED)
    for key, shape in shapes.items():
        cache.write(key, rows, torch.randn((TRIED, *shape.shape), generator=generator).to(hidden.device))
    batch = RecurrentBatch(rows, rows, rows + TRIED, num_tokens=1, has_state=True)
    of_module = RecurrentCache(lambda key: cache.read(key, rows))
    expected = split.run(call, Rows(hidden.shape[1], rows, batch.size, of_module))
    if not isinstance(expected, torch.Tensor):
        return False
    found = fused.run(hidden[0, :TRIED].unsqueeze(1), cache, batch)
    pairs = [(found, expected), *((cache.read(key, batch.targets), of_module.states[key]) for key in shapes)]
    return all(is_near(own, other) for own, other in pairs)


def _random_like(value: Any, generator: torch.Generator) -> Any:
    """Return random numbers in float32 in the place of a tensor of such, and anything else as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator).to(value.device)


def _have_rows(shapes: StateShapes) -> bool:
    """Return whether states have the dimensions that the kernels expect."""
    dimensions = {CONV: CONV_DIMENSIONS, RECURRENT: STATE_DIMENSIONS}
    return bool(shapes) and all(len(shape.shape) == dimensions[key.kind] for key, shape in shapes.items())


def _hidden_of(call: ModuleCall) -> torch.Tensor:
    hidden: torch.Tensor = call.kwargs["hidden_states"] if "hidden_states" in call.kwargs else call.args[0]
    return hidden
