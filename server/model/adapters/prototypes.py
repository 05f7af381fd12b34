"""Prototypes of adapters: the direction of inputs that an adapter changes most, for each linear layer.

Arrow (arXiv 2405.11157) scores an adapter for a token by it. It is the first right singular vector of ``B @ A``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch

from server.kernels.batch_invariant import torch_functions
from server.model.lora_adapter import LoraAdapter, LoraMatrix

Vectors = Mapping[str, torch.Tensor]  # float32 (inputs) each, by the name of a linear layer

_known: WeakKeyDictionary[LoraAdapter, Vectors] = WeakKeyDictionary()
_lock = threading.Lock()


def vectors_of(adapter: LoraAdapter) -> Vectors:
    """Return the vectors by which a chooser scores an adapter: those of its gate, or its prototypes without one."""
    return prototypes_of(adapter) if adapter.gate is None else adapter.gate


def prototypes_of(adapter: LoraAdapter) -> Vectors:
    """Return an adapter's prototypes, which are computed at the first call and kept as long as the adapter."""
    with _lock:
        known = _known.get(adapter)
        if known is None:
            with torch_functions():
                known = {name: prototype(matrices) for name, matrices in adapter.linears.items()}
            _known[adapter] = known
        return known


@torch.inference_mode()
def prototype(matrices: Iterable[LoraMatrix]) -> torch.Tensor:
    """Return the first right singular vector of a sum of products ``up @ down``, float32 ``(inputs,)``.

    Its sign has no meaning. It is zero if the sum is.

    Args:
        matrices: additions to different outputs, all of the same scale.
    """
    downs: dict[int, torch.Tensor] = {}
    squares: dict[int, torch.Tensor] = {}  # up.T @ up of all with the same ``down``
    for matrix in matrices:
        up, key = matrix.up.float(), matrix.down.data_ptr()
        downs[key] = matrix.down.float()
        squares[key] = squares[key] + up.mT @ up if key in squares else up.mT @ up
    # With down.T = Q @ R, the square of the sum is Q @ (R @ squares @ R.T) @ Q.T, which is small inside.
    q, r = torch.linalg.qr(torch.cat([*downs.values()]).mT)
    square: torch.Tensor = torch.block_diag(*squares.values())  # type: ignore[no-untyped-call]
    values, vectors = torch.linalg.eigh(r @ square @ r.mT)  # ascending
    first: torch.Tensor = q @ vectors[:, -1]
    return first * float(values[-1] > 0)
