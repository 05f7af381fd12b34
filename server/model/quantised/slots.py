"""Converts a checkpoint's quantised matrices to the slot tensors of one parameter of one expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers.core_model_loading import (
    Concatenate,
    ErnieFuseAndSplitTextVisionExperts,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from expert_store import CheckpointError, ParameterRecipe, ParameterSpec
from server.model.quantised.matrix import StoredMatrix


def is_stack(converter: WeightConverter | None) -> bool:
    """Return True if an expert's parameter is the vertical concatenation of its sources."""
    if converter is None:
        return True
    operations = [(type(operation), getattr(operation, "dim", None)) for operation in converter.operations]
    if [kind for kind, _ in operations] == [ErnieFuseAndSplitTextVisionExperts]:
        fused = converter.operations[0]
        operations = [(MergeModulelist, fused.stack_dim), (Concatenate, fused.concat_dim)]
    return operations in ([(Concatenate, 1)], [(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def slot_tensors(
    matrices: Sequence[StoredMatrix],
    target: str,
    shape: tuple[int, ...],
    converter: WeightConverter | None,
    *,
    is_transposed: bool,
) -> Iterator[tuple[ParameterSpec, ParameterRecipe]]:
    """Yield the slot tensors of a parameter that is the vertical concatenation of some quantised matrices.

    Args:
        target: the parameter's name in the model.
        shape: the shape of one expert's parameter in the model.
        converter: transformers' conversion from unquantised checkpoint tensors to the parameter.
        is_transposed: whether the parameter is ``(in, out)`` in the model.

    Raises:
        CheckpointError: the matrices do not make up that parameter.
    """
    upright = [_out_in(matrix, shape, converter, is_transposed) for matrix in matrices]
    found = [matrix for matrix in upright if matrix is not None]
    if not found or len(found) < len(matrices):
        raise CheckpointError(f"{target} is quantised, but its tensors are not matrices (out, in) to concatenate")
    made = (sum(matrix.shape[0] for matrix in found), *{matrix.shape[1] for matrix in found})
    wanted = shape[::-1] if is_transposed else shape
    if made != wanted:
        names = ", ".join(matrix.tensors[0].sources[0].name for matrix in matrices)
        raise CheckpointError(f"{names} have shape {list(made)} together; {target} needs {list(wanted)}")
    name = target.rpartition(".")[2]
    for number, matrix in enumerate(found):
        for tensor in matrix.tensors:
            full = (name if len(found) == 1 else f"{name}.{number}") + tensor.suffix
            yield ParameterSpec(full, tensor.dtype, tensor.shape), ParameterRecipe(tensor.sources, tensor.make)


def _out_in(
    matrix: StoredMatrix, shape: tuple[int, ...], converter: WeightConverter | None, is_transposed: bool
) -> StoredMatrix | None:
    """Bring a matrix into the form ``(out, in)``, whatever the checkpoint has; None if that is impossible."""
    if matrix.is_out_in:
        return matrix if is_stack(converter) or _is_transposition(converter) else None
    transposes = is_transposed
    if not is_stack(converter):
        if converter is None or not _is_transposition(converter):
            return None
        operation = converter.operations[0]
        transposes ^= not (operation.check_dims and matrix.shape == shape)
    if not transposes:
        return matrix
    return matrix.transposed() if matrix.can_transpose else None


def _is_transposition(converter: WeightConverter | None) -> bool:
    """Return True if an expert's parameter is its only source, transposed."""
    return converter is not None and [type(operation) for operation in converter.operations] == [Transpose]
