"""Finds the matrices in GGUF's types in the layout of an expert's slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

from expert_store import ExpertLayout, ParameterSpec
from server.kernels.expert import PLAIN
from server.kernels.formats import fp4
from server.kernels.formats.ggml_types import GGML_TYPES, MXFP4_ROWS, GgmlType
from server.model.checkpoint.weight_formats import MATRIX_DIMENSIONS

KINDS = [*(kind for kind in GGML_TYPES.values() if kind.dtype is None), MXFP4_ROWS]


@dataclass(frozen=True)
class SlotMatrix:
    """A quantised matrix, which is a parameter or one of its parts, such as ``gate_up_proj.0``."""

    name: str
    kind: GgmlType
    shape: tuple[int, int]  # (out, in)
    divisor: ParameterSpec | None = None  # of NVFP4

    @property
    def specs(self) -> list[ParameterSpec]:
        """Its tensors in the slot."""
        found = [ParameterSpec(*spec) for spec in self.kind.specs(self.name, *self.shape)]
        return found if self.divisor is None else [*found, self.divisor]


def find_matrices(
    layout: ExpertLayout, shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str]
) -> Mapping[str, tuple[SlotMatrix, ...]] | None:
    """Return the quantised matrices of each parameter; None if the slot is not of these parameters in GGUF's types.

    Args:
        shapes: the shapes of the parameters in the module.
        transposed: names of the module's matrices that are ``(in, out)``; quantised ones are always ``(out, in)``.
    """
    specs = {spec.name: spec for spec in layout.parameters}
    found: dict[str, tuple[SlotMatrix, ...]] = {}
    for name, shape in shapes.items():
        plain = specs.get(name)
        if plain is not None and plain.dtype in PLAIN and plain.shape == shape:
            found[name] = ()
        elif len(shape) == MATRIX_DIMENSIONS:
            found[name] = _matrices(specs, name, *(reversed(shape) if name in transposed else shape))
        if not found.get(name) and plain is None:
            return None
    expected = chain.from_iterable(
        chain.from_iterable(matrix.specs for matrix in matrices) if matrices else [specs[name]]
        for name, matrices in found.items()
    )
    return found if list(expected) == list(layout.parameters) else None


def _matrices(specs: Mapping[str, ParameterSpec], name: str, outputs: int, inputs: int) -> tuple[SlotMatrix, ...]:
    for parts in ((name,), (f"{name}.0", f"{name}.1")):
        shape = outputs // len(parts), inputs
        kinds = [_kind(specs, part, shape) for part in parts]
        found = tuple(
            SlotMatrix(part, kind, shape, specs.get(part + fp4.DIVISOR))
            for part, kind in zip(parts, kinds, strict=True)
            if kind
        )
        if len(found) == len(parts):
            return found
    return ()


def _kind(specs: Mapping[str, ParameterSpec], name: str, shape: tuple[int, int]) -> GgmlType | None:
    for kind in KINDS:
        if shape[1] % kind.inputs == 0 and all(
            specs.get(each[0]) == ParameterSpec(*each) for each in kind.specs(name, *shape)
        ):
            return kind
    return None
