"""DenseGate: the function between the linear layers of a dense MLP, which its module computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from server.model.native_layers.parts import Dense


class _Given(nn.Module):
    """Stands for a linear layer, and returns given numbers."""

    def __init__(self, numbers: torch.Tensor):
        super().__init__()
        self._numbers = numbers

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        del rows
        return self._numbers


class DenseGate:
    """A dense MLP with the attributes of an experts module that tell its gate.

    Args:
        dense: its parts.
    """

    def __init__(self, dense: Dense):
        self._dense = dense
        self.has_gate, self.act_fn = dense.has_gate, dense.act_fn

    def __getattr__(self, name: str) -> Any:
        """Return a setting of the module, such as the limit of its activation."""
        return getattr(self._dense.module, name)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return what the module makes of the outputs of its first linear layers: ``(rows, 2 * size)``.

        The module runs with other modules in the places of its linear layers; the last one passes its input on.
        """
        dense, module = self._dense, self._dense.module
        gate, up = gate_up.chunk(2, -1)
        stands = {dense.gate: gate_up if dense.up is None else gate, dense.up: up}
        names = {name: child for name, child in module.named_children() if child in (dense.gate, dense.up, dense.down)}
        try:
            for name, child in names.items():
                setattr(module, name, nn.Identity() if child is dense.down else _Given(stands[child]))
            with torch.inference_mode():
                result: torch.Tensor = module(gate_up.new_empty((1, 1)))
            if dense.factor is not None:
                result = result / dense.factor
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # a forward of another kind
            result = self.act_fn(gate) * up
        finally:
            for name, child in names.items():
                setattr(module, name, child)
        return result
