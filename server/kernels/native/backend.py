"""NativeBackend: runs each batch of a layer's experts in one call of the compiled kernels."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from ctypes import addressof
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.backend import Layout, ReadyExperts, SortedRows
from server.kernels.expert import ExpertsModule, transposed_names
from server.kernels.format_table import describe_matrix
from server.kernels.low_rank import ExpertAdditions
from server.kernels.native.activation import recognise_gate
from server.kernels.native.library import Kernels, impossible
from server.kernels.native.linear import is_exact_for
from server.kernels.native.lora import addresses
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraExperts
from server.kernels.native.structures.experts import Combination, ExpertBatch, ExpertShape
from server.kernels.native.structures.matrices import Format, Matrix, Size


def expert_shape(module: ExpertsModule, layout: Layout, *, norms_results: bool = False) -> ExpertShape | str:
    """Describe a layer's experts to the kernels; returns the reason as a string if they can't run them.

    Args:
        norms_results: whether the caller applies the norm that their results may have.
    """
    shape = describe_experts(module, layout, norms_results=norms_results)
    if isinstance(shape, str):
        return shape
    reason = impossible("greenroom_check_experts", shape, shape.first[0].inputs, layout.slot_bytes)
    return shape if reason is None else f"it has {reason}"


def describe_experts(module: ExpertsModule, layout: Layout, *, norms_results: bool = False) -> ExpertShape | str:
    """Describe a layer's experts, whose counts are not checked; returns the reason if no kernels know their like."""
    shapes: Mapping[str, tuple[int, ...]] | None = getattr(module, "parameter_shapes", None)
    if shapes is None:
        return "the shapes of its parameters are unknown"
    if module.has_post_expert_norm and not norms_results:
        return "its experts end with a norm"
    gate = recognise_gate(module)
    if gate is None:
        return "its activation is unknown"
    places = {spec.name: (spec.dtype, spec.shape, layout.offsets[spec.name]) for spec in layout.parameters}
    transposed, first_name = transposed_names(module), "gate_up_proj" if module.has_gate else "up_proj"

    def out_in(name: str) -> tuple[int, int]:
        shape = shapes[name]
        return (shape[1], shape[0]) if name in transposed else (shape[0], shape[1])

    (width, hidden), (outputs, inputs) = out_in(first_name), out_in("down_proj")
    single = describe_matrix(places, first_name, first_name in transposed, width, hidden)
    parts = [single] if single is not None else _parts(places, first_name, width, hidden)
    second = describe_matrix(places, "down_proj", "down_proj" in transposed, outputs, inputs)
    if not parts or second is None:
        return "the format of its weights has no kernel"
    biases, bias_format = [-1, -1], Format.FLOAT32
    if module.has_bias:
        first_bias, second_bias = places.get(f"{first_name}_bias"), places.get("down_proj_bias")
        if first_bias is None or second_bias is None or first_bias[0] != second_bias[0] or first_bias[0] not in PLAIN:
            return "the format of its biases has no kernel"
        biases, bias_format = [first_bias[2], second_bias[2]], PLAIN[first_bias[0]]
    if len(parts) > 1:
        gate.is_interleaved = 0  # the outputs of gate and up are apart, whatever the order in one matrix
    matrices = (Matrix * Size.MOST_PARTS)(*parts)
    return ExpertShape(matrices, second, biases[0], biases[1], gate, len(parts), bias_format)


def _parts(
    places: Mapping[str, tuple[torch.dtype, tuple[int, ...], int]], name: str, outputs: int, inputs: int
) -> list[Matrix]:
    """The matrices of a parameter that is stored in equal parts, such as gate and up; empty if a part is missing."""
    parts = [
        describe_matrix(places, f"{name}.{part}", False, outputs // Size.MOST_PARTS, inputs)
        for part in range(Size.MOST_PARTS)
    ]
    return [part for part in parts if part is not None] if None not in parts else []


class NativeBackend:
    """Runs a layer's experts in the native kernels; see ``ExpertBackend``.

    A result depends only on its row and its expert, so batches of any size and order give the same bits.

    Args:
        kernels: the loaded kernels and their threads.
        shape: the result of ``expert_shape`` for the layer.
        scales_input: the router's weights scale an expert's input rows instead of its results.
    """

    def __init__(self, kernels: Kernels, shape: ExpertShape, *, scales_input: bool = False):
        self._kernels, self._shape, self._scales_input = kernels, shape, scales_input
        self._hidden = shape.second.outputs

    def run(self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None]) -> torch.Tensor:
        """See ``ExpertBackend``."""
        weights, is_exact = rows.weights.contiguous(), is_exact_for(self._kernels, rows.hidden_states)
        outputs = self.run_unweighted(rows, batches, between, is_exact=is_exact)
        if self._scales_input:
            weights = torch.ones_like(weights)
        return self._combine(outputs, weights, rows.order[rows.num_run :].astype(np.int32), rows.hidden_states)

    def run_unweighted(
        self, rows: SortedRows, batches: Iterable[ReadyExperts], between: Callable[[], None], *, is_exact: bool
    ) -> int:
        """See ``ExpertBackend``; rows may be in any plain format. Backends of the same kernels share the results."""
        if self._scales_input:  # one scaled row per choice
            weights = rows.weights.contiguous()
            scaled = (rows.hidden_states.unsqueeze(1) * weights.unsqueeze(-1)).flatten(0, 1)
            additions = None if rows.additions is None else rows.additions.repeated(rows.top_k)
            rows = SortedRows(scaled, weights.view(-1, 1), rows.order, rows.spans, additions)
        hidden_states, order = rows.hidden_states.contiguous(), rows.order.astype(np.int32)
        if hidden_states.shape[1] != self._hidden:
            raise ValueError(f"rows of {hidden_states.shape[1]} numbers for experts that take {self._hidden}")
        outputs = self._kernels.results(len(order) * self._hidden)
        batch = ExpertBatch(
            x=hidden_states.data_ptr(),
            outputs=outputs,
            top_k=rows.top_k,
            x_stride=hidden_states.shape[1],
            x_format=PLAIN[hidden_states.dtype],
            is_exact=int(is_exact),
        )
        lora = None if rows.additions is None else _BatchAdditions(rows.additions)
        first = order.ctypes.data
        for ready in batches:
            between()
            addresses, spans = ready.addresses, [rows.spans[key] for key in ready.keys]
            batch.choices, starts = first, array("i", [start for start, _ in spans])
            if all(end == start for (_, end), (start, _) in pairwise(spans)):
                starts.append(spans[-1][1])
            else:
                choices = np.concatenate([order[start:end] for start, end in spans])
                batch.choices = choices.ctypes.data
                starts = array("i", accumulate((end - start for start, end in spans), initial=0))
            batch.slots, batch.num_experts = addresses.buffer_info()
            batch.starts, _ = starts.buffer_info()
            if lora is not None:
                batch.lora = lora.address(ready.keys)
            self._kernels.experts(self._shape, batch)
        return outputs

    def _combine(
        self, outputs: int, weights: torch.Tensor, absent: npt.NDArray[np.int32], hidden_states: torch.Tensor
    ) -> torch.Tensor:
        y = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        tokens, top_k = weights.shape
        self._kernels.combine(
            Combination(
                outputs=outputs,
                weights=weights.data_ptr(),
                absent=absent.ctypes.data,
                y=y.data_ptr(),
                tokens=tokens,
                top_k=top_k,
                hidden=self._hidden,
                y_stride=self._hidden,
                num_absent=len(absent),
                weights_format=PLAIN[weights.dtype],
                y_format=PLAIN[y.dtype],
            )
        )
        return y


class _BatchAdditions:
    """The additions of adapters to the batches of a layer, as the kernels read them."""

    def __init__(self, additions: ExpertAdditions):
        self._additions, self._factors = additions, np.ascontiguousarray(additions.factors)
        self._tables = tables = additions.tables()
        self._first = addresses(table.first for table in tables)
        self._second = addresses(table.second for table in tables)
        self._call = LoraExperts(
            self._first.ctypes.data, self._second.ctypes.data, self._factors.ctypes.data, len(tables), None, None
        )

    def address(self, keys: Sequence[Hashable]) -> int:
        """Return the address of the additions to some experts, valid until the next call."""
        self._numbers = np.array([self._additions.number_of(key) for key in keys], dtype=np.int32)
        self._call.numbers = self._numbers.ctypes.data
        return addressof(self._call)
