"""Quantised matrices of a checkpoint to the tensors that lie in a slot for one parameter of one expert."""

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

from .matrix import StoredMatrix


def is_stack(converter: WeightConverter | None) -> bool:
    """Whether a parameter of an expert is its sources, one above the other."""
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
    """What lies in a slot of a parameter that consists of some quantised matrices, one above the other.

    Args:
        target: the parameter's name in the model.
        shape: of one expert's, in the model.
        converter: how transformers makes the parameter of what the checkpoint has, had it not been quantised.
        is_transposed: whether it is ``(in, out)`` in the model.

    Raises:
        CheckpointError: they do not make up that parameter.
    """
    upright = [_out_in(matrix, shape, converter, is_transposed) for matrix in matrices]
    found = [matrix for matrix in upright if matrix is not None]
    if not found or len(found) < len(matrices):
        raise CheckpointError(f"{target} is quantised, and not in matrices (out, in) that lie one above the other")
    made = (sum(matrix.shape[0] for matrix in found), *{matrix.shape[1] for matrix in found})
    wanted = shape[::-1] if is_transposed else shape
    if made != wanted:
        names = ", ".join(matrix.tensors[0].sources[0].name for matrix in matrices)
        raise CheckpointError(f"{names} makes {list(made)} for {target}, which takes {list(wanted)}")
    name = target.rpartition(".")[2]
    for number, matrix in enumerate(found):
        for tensor in matrix.tensors:
            full = (name if len(found) == 1 else f"{name}.{number}") + tensor.suffix
            yield ParameterSpec(full, tensor.dtype, tensor.shape), ParameterRecipe(tensor.sources, tensor.make)


def _out_in(
    matrix: StoredMatrix, shape: tuple[int, ...], converter: WeightConverter | None, is_transposed: bool
) -> StoredMatrix | None:
    """A matrix as ``(out, in)``, whichever way it lies in the checkpoint; None if it can't be had so."""
    if matrix.is_out_in:
        return matrix if is_stack(converter) else None
    turns = is_transposed
    if not is_stack(converter):
        assert converter is not None
        operation = converter.operations[0]
        if len(converter.operations) > 1 or not isinstance(operation, Transpose):
            return None
        turns ^= not (operation.check_dims and matrix.shape == shape)
    if not turns:
        return matrix
    return matrix.turned() if matrix.can_turn else None
