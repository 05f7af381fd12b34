"""The file of a pack that was made from GGUF: the types that its weights keep, in JSON.

``weights`` is the name of the file's mixture of types, such as ``Q4_K_M``. ``trunk`` has each matrix of the trunk that
stays quantised, by its hub name: the suffixes of its ``tensors`` in their order, and its ``type``. That is a name; two
names of an expansion of latents with its sizes; or a type and ``ordered`` if the columns are in another order than the
inputs, or ``divided`` if a number divides the scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from expert_store import CheckpointError, FileName, MadeTensors, ParameterSpec, TensorSource, Weights, read_tensor
from server.model.checkpoint.gguf.block_matrices import KINDS
from server.model.checkpoint.tensor_map import PackedMatrices
from server.model.quantised.column_order import OrderedColumns
from server.model.quantised.divided import Divided
from server.model.quantised.latent_expansion import LatentExpansion
from server.model.quantised.linear import LinearFormat
from server.model.quantised.matrix import SlotTensor
from server.model.quantised.packed_matrix import PackedMatrix

NAME = FileName("gguf_types.json")
FORMAT = "gguf"  # of the trunk in the manifest
WEIGHTS, TRUNK, TYPE, TENSORS = "weights", "trunk", "type", "tensors"
ORDERED, DIVIDED = "ordered", "divided"
Index = Mapping[str, TensorSource]


def write_types(weights: str, matrices: PackedMatrices) -> bytes:
    """Return the content of the file."""
    trunk = {
        name: {TYPE: _named(matrix.format), TENSORS: [each.suffix for each in matrix.tensors]}
        for name, matrix in matrices.items()
    }
    return json.dumps({WEIGHTS: weights, TRUNK: trunk}, indent=1).encode()


def made_tensors(name: str, matrix: PackedMatrix) -> MadeTensors:
    """Return the tensors that a pack has of a matrix, as they are in memory."""

    def make() -> Weights:
        made = matrix.make([read_tensor(source) for source in matrix.sources])
        return {name + suffix: tensor for suffix, tensor in made.items()}

    return MadeTensors(
        tuple(ParameterSpec(name + each.suffix, each.dtype, each.shape) for each in matrix.tensors), make
    )


def read_matrices(content: Mapping[str, Any], index: Index) -> PackedMatrices:
    """Return the quantised matrices of a pack's trunk.

    Args:
        content: of the file.
        index: all tensors of the trunk.

    Raises:
        CheckpointError: the file does not fit the trunk.
    """
    try:
        return {
            name: PackedMatrix(_format(each[TYPE]), tuple(_tensor(name, suffix, index) for suffix in each[TENSORS]))
            for name, each in content[TRUNK].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{NAME} does not fit the trunk; copy it again, or pack the model again") from error


def _tensor(name: str, suffix: str, index: Index) -> SlotTensor:
    source = index[name + suffix]
    return SlotTensor(suffix, source.dtype, source.shape, (source,))


def _named(form: LinearFormat) -> Any:
    if isinstance(form, LatentExpansion):
        return [_named(form.keys), _named(form.values), form.heads, form.rank, form.nope_dim, form.value_dim]
    if isinstance(form, OrderedColumns | Divided):
        return [_named(form.stored), ORDERED if isinstance(form, OrderedColumns) else DIVIDED]
    return next(name for name, kind in KINDS.items() if kind == form)


def _format(value: Any) -> LinearFormat:
    if isinstance(value, str):
        return KINDS[value]
    kind, second, *sizes = value
    if second in {ORDERED, DIVIDED}:
        return OrderedColumns(_format(kind)) if second == ORDERED else Divided(_format(kind))
    heads, rank, nope_dim, value_dim = map(int, sizes)
    return LatentExpansion(KINDS[kind], KINDS[second], heads, rank, nope_dim, value_dim)
