"""Finds the parts of a decoder layer, by their names and results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.native_layers.errors import UnsupportedLayerError
from server.model.quantised.linear import QuantisedLinear

Linear = nn.Linear | QuantisedLinear
LINEARS = (nn.Linear, QuantisedLinear)
HEAD_NORMS = ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")
DENSE_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # gate, up and down
EPSILONS = ("variance_epsilon", "eps", "epsilon")
TOLERANCE = 1e-5  # error of a norm in float32, relative to its largest weight
SIZES = (1.0, 1e-2, 1e-3)  # of samples for norms: the smaller ones show how the epsilon is added


@dataclass(frozen=True)
class Norm:
    """An RMS norm."""

    module: nn.Module
    weight: torch.Tensor  # float32 (size,), multiplied with the normed values
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """The parts of grouped-query attention."""

    module: Any
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Norm | None
    key_norm: Norm | None


@dataclass(frozen=True)
class ExternalMixer:
    """A module that mixes tokens in another way than attention, and runs as it is."""

    module: nn.Module


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
    mixer: Attention | ExternalMixer
    block: nn.Module  # the MLP, with the router and the experts
    experts: Any
    router: Any  # the module that owns the router's parameters
    dense: Dense | None


def find_parts(layer: nn.Module, external: Collection[nn.Module] = ()) -> Parts:
    """Return the parts of a decoder layer.

    Args:
        layer: one of the model.
        external: modules that may be its mixer as they are.

    Raises:
        UnsupportedLayerError: the layer has other parts.
    """
    mixer = next((ExternalMixer(child) for child in layer.children() if child in external), None) or _attention(layer)
    norms = [norm for child in layer.children() if (norm := _norm(child)) is not None]
    if len(norms) != 2:  # noqa: PLR2004
        raise UnsupportedLayerError(f"its layers have {len(norms)} norms instead of two")
    block = next((child for child in layer.children() if child is not mixer.module and _norm(child) is None), None)
    if block is None:
        raise UnsupportedLayerError("its layers have no MLP")
    experts = next((module for module in block.modules() if hasattr(module, "parameter_shapes")), None)
    dense = _dense(block, experts)
    if experts is None and dense is None:
        raise UnsupportedLayerError("an MLP has no gate")
    inside = _inside(norms, mixer, dense)
    rest = [parameter for parameter in block.parameters() if parameter.numel() and id(parameter) not in inside]
    router = _router_of(block, rest) if experts is not None else None
    left = [name for name, value in layer.named_parameters() if value.numel() and id(value) not in inside]
    known = {id(value) for value in router.parameters()} if router is not None else set()
    unknown = [name for name in left if id(layer.get_parameter(name)) not in known]
    if unknown:
        raise UnsupportedLayerError(f"its layers have an unknown parameter, {unknown[0]}")
    return Parts(norms[0], norms[1], mixer, block, experts, router, dense)


def find_norm(module: nn.Module) -> Norm:
    """Return a module as an RMS norm.

    Raises:
        UnsupportedLayerError: the module computes something else.
    """
    norm = _norm(module)
    if norm is None:
        raise UnsupportedLayerError(f"{type(module).__name__} is not an RMS norm")
    return norm


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is an RMS norm."""
    return _norm(module) is not None


def matrix_of(linear: Linear) -> Matrix:
    """Describe a linear layer's weights to the kernels."""
    if isinstance(linear, QuantisedLinear):
        return linear.matrix
    matrix = plain_matrix(linear.weight)
    if matrix is None:
        raise UnsupportedLayerError(f"its weights are {linear.weight.dtype}")
    return matrix


def no_matrix() -> Matrix:
    """A matrix that is not there."""
    return Matrix(format=Format.FLOAT32)


def _attention(layer: nn.Module) -> Attention:
    for child in layer.children():
        found = [getattr(child, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        output = next((getattr(child, name) for name in ("o_proj", "out_proj", "dense") if hasattr(child, name)), None)
        linears = [linear for linear in (*found, output) if isinstance(linear, LINEARS)]
        if len(linears) == 4:  # noqa: PLR2004
            query, key, value, back = linears
            query_norm, key_norm = (_head_norm(child, names) for names in HEAD_NORMS)
            return Attention(child, query, key, value, back, query_norm, key_norm)
    raise UnsupportedLayerError("its attention has no projections of queries, keys and values")


def _head_norm(attention: nn.Module, names: Iterable[str]) -> Norm | None:
    norm = next((found for name in names if (found := getattr(attention, name, None)) is not None), None)
    return None if norm is None else find_norm(norm)


def _norm(module: nn.Module) -> Norm | None:
    weight = getattr(module, "weight", None)
    epsilon = next((getattr(module, name) for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if (
        epsilon is None
        or not isinstance(weight, torch.Tensor)
        or weight.ndim != 1
        or len(list(module.parameters())) > 1
    ):
        return None
    sample = torch.linspace(-3, 2, len(weight)).expand(len(SIZES), -1) * torch.tensor(SIZES).unsqueeze(1)
    normed = sample * torch.rsqrt(sample.square().mean(1, keepdim=True) + epsilon)
    with torch.inference_mode():
        found = deepcopy(module).float()(sample)
    factors = weight.detach().float(), weight.detach().float() + 1
    errors = [float((found - normed * factor).abs().max() / factor.abs().max().clamp_min(1e-30)) for factor in factors]
    best = min(range(len(factors)), key=errors.__getitem__)
    return Norm(module, factors[best].contiguous(), epsilon) if errors[best] <= TOLERANCE else None


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


def _inside(norms: Iterable[Norm], mixer: Attention | ExternalMixer, dense: Dense | None) -> set[int]:
    modules: list[nn.Module | None] = [norm.module for norm in norms]
    sinks = set()
    if isinstance(mixer, Attention):
        modules += [mixer.query, mixer.key, mixer.value, mixer.output]
        modules += [norm.module for norm in (mixer.query_norm, mixer.key_norm) if norm is not None]
        sinks = {id(value) for name, value in mixer.module.named_parameters(recurse=False) if "sink" in name}
    else:
        modules.append(mixer.module)
    if dense is not None:
        modules += [dense.gate, dense.up, dense.down, dense.weighting]
    return sinks | {id(parameter) for parameter in _parameters(modules)}


def _parameters(modules: Iterable[nn.Module | None]) -> Iterator[nn.Parameter]:
    for module in modules:
        if module is not None:
            yield from module.parameters()
