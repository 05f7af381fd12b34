"""Finds the parts of a decoder layer, by their names and results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import MixerParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.table import MIXERS

DENSE_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # gate, up and down


@dataclass(frozen=True)
class Dense:
    """A gated MLP that every token goes to."""

    gate: Linear
    up: Linear
    down: Linear
    act_fn: Any
    weighting: Linear | None = None  # linear layer whose sigmoid multiplies the result


@dataclass(frozen=True)
class Parts:
    """The parts of a decoder layer; ``experts`` and ``dense`` may be either or both."""

    input_norm: Norm
    inner_norm: Norm
    mixers: Sequence[MixerParts]  # of one module, as each kind that may be it; the likeliest first
    block: nn.Module  # the MLP, with the router and the experts
    experts: Any
    router: Any  # the module that owns the router's parameters
    dense: Dense | None

    @property
    def mixer_module(self) -> nn.Module:
        """The family's module of the mixer."""
        module: nn.Module = self.mixers[0].module
        return module


def find_parts(layer: nn.Module, recurrent: Collection[nn.Module] = ()) -> Parts:
    """Return the parts of a decoder layer.

    Args:
        layer: one of the model.
        recurrent: modules that keep states.

    Raises:
        UnsupportedLayerError: the layer has other parts.
    """
    mixers = find_mixers(layer, recurrent)
    norms = [norm for child in layer.children() if (norm := norm_of(child)) is not None]
    if len(norms) != 2:  # noqa: PLR2004
        raise UnsupportedLayerError(f"its layers have {len(norms)} norms instead of two")
    block = next((each for each in layer.children() if each is not mixers[0].module and norm_of(each) is None), None)
    if block is None:
        raise UnsupportedLayerError("its layers have no MLP")
    experts = next((module for module in block.modules() if hasattr(module, "parameter_shapes")), None)
    dense = _dense(block, experts)
    if experts is None and dense is None:
        raise UnsupportedLayerError("an MLP has no gate")
    inside = {id(parameter) for parameter in _known(norms, mixers[0].module, dense)}
    rest = [parameter for parameter in block.parameters() if parameter.numel() and id(parameter) not in inside]
    router = _router_of(block, rest) if experts is not None else None
    if router is not None:
        inside |= {id(value) for value in router.parameters()}
    _check_known(layer, inside)
    return Parts(norms[0], norms[1], mixers, block, experts, router, dense)


def find_mixers(layer: nn.Module, recurrent: Collection[nn.Module]) -> Sequence[MixerParts]:
    """Return the parts of a layer's mixer as each kind that it may be.

    Raises:
        UnsupportedLayerError: it is of none.
    """
    unknown: UnsupportedLayerError | None = None
    for child in layer.children():
        mixers: list[MixerParts] = []
        for kind in MIXERS:
            parts = kind.find(child, keeps_state=child in recurrent)
            if parts is None:
                continue
            try:
                _check_known(child, {id(parameter) for parameter in parts.parameters()})
            except UnsupportedLayerError as error:
                unknown = error
            else:
                mixers.append(parts)
        if mixers:
            return mixers
    raise unknown or UnsupportedLayerError("its attention has no projections of queries, keys and values")


def _check_known(module: nn.Module, known: Collection[int]) -> None:
    """Raise ``UnsupportedLayerError`` if a module has a parameter besides those known by their ids."""
    for name, value in module.named_parameters():
        if value.numel() and id(value) not in known:
            raise UnsupportedLayerError(f"its layers have an unknown parameter, {name}")


def _dense(block: nn.Module, experts: nn.Module | None) -> Dense | None:
    found = [module for module in block.modules() if module is not experts and _gated_linears(module)]
    if not found:
        return None
    if len(found) > 1:
        raise UnsupportedLayerError("its layers have several dense MLPs")
    gate, up, down = _gated_linears(found[0])
    # A module without an activation of its own calls a function; the trial of the layer shows if it is another one.
    return Dense(gate, up, down, getattr(found[0], "act_fn", F.silu), getattr(block, "shared_expert_gate", None))


def _gated_linears(module: nn.Module) -> list[Linear]:
    """Return the layers of a gated MLP, gate, up and down; empty if the module is none."""
    for names in DENSE_NAMES:
        linears = [linear for name in names if isinstance(linear := getattr(module, name, None), LINEARS)]
        if len(linears) == len(names):
            return linears
    return []


def _router_of(block: nn.Module, rest: Iterable[nn.Parameter]) -> nn.Module:
    """Return the smallest module that has all the remaining parameters of a block."""
    wanted = {id(parameter) for parameter in rest}
    owners = [module for module in block.modules() if wanted <= {id(value) for value in module.parameters()}]
    if not wanted or not owners:
        raise UnsupportedLayerError("its router was not found")
    return owners[-1]


def _known(norms: Iterable[Norm], mixer: nn.Module, dense: Dense | None) -> Iterator[nn.Parameter]:
    modules: list[nn.Module | None] = [*(norm.module for norm in norms), mixer]
    if dense is not None:
        modules += [dense.gate, dense.up, dense.down, dense.weighting]
    for module in modules:
        if module is not None:
            yield from module.parameters()
