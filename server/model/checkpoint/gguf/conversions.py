"""Undoes what llama.cpp's converter did to tensors: each function takes those of a file, and returns a parameter.

Tensors are float32. Source: ``conversion/*.py`` of llama.cpp, named for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Values = Mapping[str, Any]  # of the config
Convert = Callable[[Values, Sequence[torch.Tensor]], torch.Tensor]


def unchanged(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the only tensor."""
    return tensors[0]


def less_one(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo ``weight + 1`` of a norm (``qwen.py``, Qwen3Next)."""
    return tensors[0] - 1


def decay_log(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo ``-exp(A_log)`` (``qwen.py``, Qwen3Next)."""
    return torch.log(-tensors[0])


def one_row(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a matrix ``(1, in)``, whose first dimension llama.cpp drops when it quantises a file."""
    return tensors[0].view(1, -1)


def one_number_each(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo a shape of several dimensions for numbers in a row (``mamba.py``, Mamba2; ``nemotron.py``)."""
    return tensors[0].flatten()


def decay_log_each(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo both that and ``-exp(A_log)``."""
    return torch.log(-tensors[0].flatten())


def joined(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join matrices that were split by their rows (``granite.py``)."""
    return torch.cat(list(tensors))


def with_channel(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo the squeezing of a convolution's weight ``(channels, 1, taps)``."""
    return tensors[0].unsqueeze(1)


def queries_in_halves(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo the permutation of a head's rows for queries (``llama.py``, ``permute``)."""
    return _in_halves(tensors[0], values["num_attention_heads"])


def keys_in_halves(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo the permutation of a head's rows for keys (``llama.py``, ``permute``)."""
    return _in_halves(tensors[0], values["num_key_value_heads"])


def expansion_of_latents(_: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the two halves of ``kv_b_proj``, of which that of keys was transposed (``deepseek.py``, DeepseekV2)."""
    keys, expanded = tensors  # (heads, latents, nope), (heads, v, latents)
    return torch.cat([keys.mT, expanded], 1).flatten(0, 1)


def delta_net_inputs(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the rows of queries, keys, values and gates by key head (``qwen.py``, Qwen3Next)."""
    joined, gates = tensors
    heads, key_size = values["linear_num_key_heads"], values["linear_key_head_dim"]
    queries, keys, others = torch.split(joined, [heads * key_size, heads * key_size, len(gates)])
    parts = [part.view(heads, -1, *part.shape[1:]) for part in (queries, keys, others, gates)]
    return torch.cat(parts, 1).flatten(0, 1)


def grouped_rows(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bring rows of value heads back into the order of their key heads (``qwen.py``, ``_reorder_v_heads``)."""
    return _grouped(values, tensors[0])


def grouped_columns(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Do the same for the inputs of a matrix."""
    return _grouped(values, tensors[0].mT).mT.contiguous()


def grouped_last_rows(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Do the same for the rows of values, after those of queries and keys."""
    first = 2 * values["linear_num_key_heads"] * values["linear_key_head_dim"]
    return torch.cat([tensors[0][:first], _grouped(values, tensors[0][first:])])


def grouped_channels(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Do the same for the channels of a convolution, whose weight was squeezed."""
    return grouped_last_rows(values, tensors).unsqueeze(1)


def grouped_decay_log(values: Values, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Do the same for the decays of heads, which are stored as in ``decay_log``."""
    return _grouped(values, decay_log(values, tensors))


# These move complete rows, so that they do the same to rows of quantised blocks.
OF_ROWS = (
    unchanged,
    joined,
    queries_in_halves,
    keys_in_halves,
    delta_net_inputs,
    grouped_rows,
    grouped_last_rows,
)
OF_COLUMNS = (grouped_columns,)  # this moves complete columns


def column_order(convert: Convert, values: Values, inputs: int) -> torch.Tensor:
    """Return the input that each column of a file belongs to, for a conversion of ``OF_COLUMNS``."""
    [columns] = convert(values, [torch.arange(inputs).view(1, -1)])
    return torch.argsort(columns)


def _in_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def _grouped(values: Values, rows: torch.Tensor) -> torch.Tensor:
    heads = values["linear_num_key_heads"]
    shared = values["linear_num_value_heads"] // heads
    return rows.reshape(shared, heads, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)
