"""Recognises the activation and gate of an experts module from its results for sample numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Activation, Gate

Function = Callable[[torch.Tensor], torch.Tensor]

FUNCTIONS: dict[Activation, Function] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.RELU: F.relu,
    Activation.RELU_SQUARED: lambda x: F.relu(x).square(),
    Activation.QUICK_GELU: lambda x: x * torch.sigmoid(1.702 * x),
}
SAMPLE = 64  # numbers for the gate, and as many for the up projection
LARGEST = 12.0  # magnitude of a sample number, above the limit of clamped activations
NEARNESS = 1e-4


def recognise_gate(module: ExpertsModule) -> Gate | None:
    """Return a module's gate, or its activation if it has no gate; None if the kernels do not support it."""
    random = torch.Generator().manual_seed(0)
    gate, up = (torch.rand((2, SAMPLE), generator=random) * 2 - 1).mul(LARGEST).unbind()
    if not module.has_gate:
        found = module.act_fn(gate)
        kinds = (kind for kind, function in FUNCTIONS.items() if _is_near(function(gate), found))
        return next((Gate(kind, 0, 0, 0.0, 0.0) for kind in kinds), None)
    for is_interleaved in (False, True):
        given = torch.stack((gate, up), 1).flatten() if is_interleaved else torch.cat((gate, up))
        found = module._apply_gate(given.unsqueeze(0))[0]  # noqa: SLF001
        for kind, alpha, limit, wanted in _candidates(module, gate, up):
            if _is_near(wanted, found):
                return Gate(kind, 1, int(is_interleaved), alpha, limit)
    return None


def _candidates(
    module: ExpertsModule, gate: torch.Tensor, up: torch.Tensor
) -> Iterator[tuple[Activation, float, float, torch.Tensor]]:
    for kind, function in FUNCTIONS.items():
        yield kind, 0.0, 0.0, function(gate) * up
    alpha, limit = (getattr(module, name, None) for name in ("alpha", "limit"))
    if isinstance(alpha, float) and isinstance(limit, int | float):
        clamped = gate.clamp(max=limit)
        swish = clamped * torch.sigmoid(alpha * clamped)
        yield Activation.CLAMPED_SWISH, alpha, float(limit), swish * (up.clamp(-limit, limit) + 1)


def _is_near(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    difference = float((wanted - found.float()).abs().max()) if wanted.shape == found.shape else math.inf
    return difference <= NEARNESS * LARGEST * LARGEST
