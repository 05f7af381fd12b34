"""Computes missed experts by the native kernels of the CPU, where they lie in host memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertKey
from expert_store.host_part import HostPart
from expert_store.prefetching.governor import Governor
from server.kernels.backend import SortedRows
from server.kernels.expert import ExpertsModule, scales_input
from server.kernels.native.backend import NativeBackend, expert_shape
from server.kernels.native.library import Kernels
from server.kernels.native.linear import is_exact_for
from server.model.errors import ModelError
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.step_record import StepRecord

MissCompute = Literal["copy", "cpu", "auto"]
IntArray = npt.NDArray[np.int64]


class HostCompute:
    """Computes some choices of a layer on the CPU.

    Args:
        layers: of the model.
        kernels: native kernels, and their threads.

    Raises:
        ModelError: the kernels can't run a layer.
    """

    def __init__(self, layers: Mapping[ExpertsModule, ExpertLayer], kernels: Kernels):
        self._kernels = kernels
        self._backends: dict[int, NativeBackend] = {}
        for module, layer in layers.items():
            shape = expert_shape(module, layer.layout)
            if isinstance(shape, str):
                raise ModelError(
                    f"--miss-compute: the CPU's kernels do not run the experts of {type(module).__name__}: {shape}; "
                    "use --miss-compute copy"
                )
            self._backends[layer.number] = NativeBackend(kernels, shape, scales_input=scales_input(module))

    def run(
        self, layer: ExpertLayer, experts: HostPart, chosen: IntArray, x: torch.Tensor, weights: torch.Tensor
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """Run the choices of some experts.

        Args:
            experts: which are in host memory.
            chosen: of the layer, ``(tokens, k)``.
            x: hidden states in the CPU's memory, ``(tokens, hidden)``.
            weights: of the router, in the CPU's memory, ``(tokens, k)``.

        Returns:
            The numbers of the choices, ``token * k + place``, and the product of each, ``(choices, hidden)``.
        """
        choices, spans = choices_of(chosen, experts.keys)
        of_choices = weights.reshape(-1, 1)[choices]
        rows = SortedRows(x[choices // chosen.shape[1]], of_choices, np.arange(len(choices)), spans)
        is_exact = is_exact_for(self._kernels, x)
        batch: Any = experts  # these kernels take keys and addresses alone of a batch
        address = self._backends[layer.number].run_unweighted(rows, [batch], _nothing, is_exact=is_exact)
        count = len(choices) * x.shape[1]
        products = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
        return choices, products.reshape(len(choices), -1).copy()


class MissPlacement:
    """Decides for each decode step whether the CPU computes missed experts; pieces of prompts have them copied.

    Args:
        mode: ``auto`` compares whole steps by turns, in trials that are repeated now and then.
    """

    def __init__(self, mode: MissCompute, host: HostCompute | None = None):
        self._governor = Governor() if mode == "auto" else None
        self._host = host

    @property
    def now(self) -> HostCompute | None:
        """The CPU's compute of missed experts in the next step; None if they are copied to the device."""
        return None if self._governor is not None and not self._governor.is_active else self._host

    @contextmanager
    def measured(self, record: StepRecord) -> Iterator[None]:
        """Measure a decode step that may have missed experts."""
        started = time.perf_counter()
        yield
        if self._governor is not None:
            self._governor.record(time.perf_counter() - started, record.cost.num_lookups)


def choices_of(chosen: IntArray, keys: Sequence[ExpertKey]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    """Return the choices of some experts, expert after expert, and the range of each."""
    flat, found, spans, start = chosen.ravel(), [], {}, 0
    for key in keys:
        own = np.flatnonzero(flat == key.expert)
        spans[key] = (start, start := start + len(own))
        found.append(own)
    return np.concatenate(found), spans


def _nothing() -> None:
    """Do nothing between batches, as there is one."""
