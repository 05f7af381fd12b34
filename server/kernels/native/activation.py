"""Recognises the activation and gate of an experts module from its results for sample numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter

import torch
from torch.nn import functional as F

from server.kernels.expert import ExpertsModule
from server.kernels.native.structures.experts import Activation, Gate

Function = Callable[[torch.Tensor], torch.Tensor]

FUNCTIONS: dict[Activation, Function] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.RELU: F.relu,
    Activation.RELU_SQUARED: lambda x: F.relu(x).square(),
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
}
NAMES: dict[str, Activation] = {  # by the class of a module's `act_fn`, in transformers or torch
    "SiLUActivation": Activation.SILU,
    "SiLU": Activation.SILU,
    "GELUActivation": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "FastGELUActivation": Activation.GELU_TANH,
    "AccurateGELUActivation": Activation.GELU_TANH,
    "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU_SQUARED,
    "QuickGELUActivation": Activation.QUICK_GELU,
}
SETTINGS = (("alpha", "swiglu_alpha"), ("limit", "swiglu_limit"))  # attributes
CAPS, CAP = ("gate_softcap", "up_softcap"), "softcap"  # parts of an activation, each with an attribute
CURVED = 8.0  # activations differ from straight lines below this magnitude
LARGEST = 1e4  # magnitude of a sample number, above any limit that clamps an activation
ROUNDING = 1e-5  # of float32, relative to gate * up; any two of `FUNCTIONS` differ by at least 2e-4


def recognise_gate(module: ExpertsModule) -> Gate | None:
    """Return a module's gate, or its activation if it has no gate; None if the kernels do not support it.

    The gate is the candidate that comes nearest to the module's results, if it differs by no more than rounding and is
    not another one by name.
    """
    gate, up = _samples()
    if not module.has_gate:
        found = module.act_fn(gate)
        matches = [
            (_error(function(gate.double()), found, gate.abs()), Gate(kind, 0, 0, 0.0, 0.0))
            for kind, function in FUNCTIONS.items()
        ]
    else:
        matches = []
        for is_interleaved in (False, True):
            given = torch.stack((gate, up), 1).flatten() if is_interleaved else torch.cat((gate, up))
            found = module._apply_gate(given.unsqueeze(0))[0]  # noqa: SLF001
            matches += [
                (
                    _error(wanted, found, gate.abs() * (up.abs() + 1)),
                    Gate(kind, 1, int(is_interleaved), alpha, limit),
                )
                for kind, alpha, limit, wanted in _candidates(module, gate.double(), up.double())
            ]
    error, best = min(matches, key=itemgetter(0))
    named = NAMES.get(type(getattr(module, "act_fn", None)).__name__, best.activation)
    own = Activation.SILU if best.activation == Activation.LIMITED_SILU else best.activation
    is_named = own in (named, Activation.CLAMPED_SWISH)  # which uses no `act_fn`
    return best if error <= ROUNDING and is_named else None


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers for the gate and for the up projection: every size of one with every size of the other."""
    random = torch.Generator().manual_seed(0)
    curved = torch.linspace(-CURVED, CURVED, 97)
    large = torch.logspace(math.log10(CURVED), math.log10(LARGEST), 31)
    sizes = torch.cat((curved, large, -large))
    gate = sizes.repeat(4)
    return gate, gate[torch.randperm(len(gate), generator=random)]


def _candidates(
    module: ExpertsModule, gate: torch.Tensor, up: torch.Tensor
) -> Iterator[tuple[Activation, float, float, torch.Tensor]]:
    for kind, function in FUNCTIONS.items():
        yield kind, 0.0, 0.0, function(gate) * up
    own = [getattr(getattr(getattr(module, "act_fn", None), name, None), CAP, None) for name in CAPS]
    caps = [float(cap) for cap in own if isinstance(cap, int | float) and cap > 0]
    if len(caps) == len(CAPS):
        by_gate, by_up = caps
        capped = torch.tanh(gate / by_gate) * by_gate, torch.tanh(up / by_up) * by_up
        yield Activation.SOFT_CAPPED, by_gate, by_up, capped[0] * torch.sigmoid(gate) * capped[1]
    alpha, limit = (_setting(module, names) for names in SETTINGS)
    if not isinstance(limit, int | float) or limit <= 0:
        return
    up = up.clamp(-limit, limit)
    yield Activation.LIMITED_SILU, 0.0, float(limit), F.silu(gate).clamp(max=limit) * up
    gate = gate.clamp(max=limit)
    for kind, function in FUNCTIONS.items():
        yield kind, 0.0, float(limit), function(gate) * up
    if isinstance(alpha, float):
        yield Activation.CLAMPED_SWISH, alpha, float(limit), gate * torch.sigmoid(alpha * gate) * (up + 1)


def _setting(module: ExpertsModule, names: Iterable[str]) -> object:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _error(wanted: torch.Tensor, found: torch.Tensor, scale: torch.Tensor) -> float:
    """Return the largest difference, relative to ``scale`` or the results themselves where they are larger."""
    if wanted.shape != found.shape:
        return math.inf
    difference = (wanted - found).abs() / torch.maximum(wanted.abs(), scale.double()).clamp_min(1e-30)
    return float(difference.nan_to_num(math.inf).max())
