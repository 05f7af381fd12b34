"""Bounds the memory that the tensors of a step take, by the model's shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.model.kv_cache import KVGroup

FLOAT = 4  # bytes of a float32
CHOICE_BYTES = 8  # of an expert's number and its weight
NATIVE_GROWTH = 1.25  # ``Buffer::reserve`` of the native engine takes so much more than was asked for
WORKSPACE_GROWTH = 1.5  # and so does ``lean.workspace``
LOGIT_COPIES = 3  # of a row: the logits, their log probabilities, and what sampling makes of them
TORCH_COPIES = 4  # of what a layer reads and writes: torch makes a new tensor at each operation
LEAST_BYTES = 4 << 20  # Python objects, block tables, masks


@dataclass(frozen=True)
class StepShape:
    """The sizes of a model that decide how much its steps take; numbers a token unless told otherwise."""

    hidden: int
    queries: int  # of the widest attention layer
    keys: int  # and as many values
    dense: int  # the middle of the widest dense feed-forward or shared expert; 0 without
    expert: int  # the middle of the widest routed expert
    num_experts: int  # of the widest layer
    num_routed: int  # layers with experts
    top_k: int
    vocabulary: int
    itemsize: int  # bytes of a number, in torch
    is_native: bool  # whether native kernels run whole decoder layers

    @classmethod
    def of(
        cls,
        config: Any,
        groups: Sequence[KVGroup],
        num_experts: int,
        num_routed: int,
        top_k: int,
        itemsize: int,
        *,
        is_native: bool,
    ) -> StepShape:
        """The shape of a model of transformers.

        Args:
            config: of its text.
            groups: of its attention layers.
        """
        hidden, heads = int(config.hidden_size), int(getattr(config, "num_attention_heads", 1))
        layers = [shape for group in groups for shape in group.shapes.values()]
        dense = _widest(config, "intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "d_ff") or hidden
        return cls(
            hidden=hidden,
            queries=heads * max((shape.dim for shape in layers), default=hidden // heads),
            keys=max((shape.kv_heads * shape.dim for shape in layers), default=hidden),
            dense=dense,
            expert=_widest(config, "moe_intermediate_size", "expert_ffn_hidden_size") or dense,
            num_experts=num_experts,
            num_routed=num_routed,
            top_k=top_k,
            vocabulary=int(config.vocab_size),
            itemsize=itemsize,
            is_native=is_native,
        )


def step_bytes(shape: StepShape, num_tokens: int, num_logits: int) -> int:
    """The most that a step takes beside weights and KV cache.

    It is the sum of what is alive at the same time in one layer, of the logits, and of what sampling makes of them.
    Native kernels keep their buffers from step to step; what they took once, they take for good.

    Args:
        num_tokens: of the step.
        num_logits: rows of logits that it gives.
    """
    layer = _native_bytes(shape) if shape.is_native else _torch_bytes(shape)
    return LEAST_BYTES + num_tokens * layer + num_logits * shape.vocabulary * FLOAT * LOGIT_COPIES


def _native_bytes(shape: StepShape) -> int:
    """Bytes of a token in ``lean.workspace`` and in the buffers of ``kernels/native/src/engine.h``."""
    panel = shape.itemsize  # bytes of a number of what products are given, at most
    workspace = 2 * shape.hidden * FLOAT + shape.num_routed * shape.top_k * CHOICE_BYTES
    attention = (shape.hidden + shape.queries) * panel  # rows
    attention += (2 * shape.queries + 2 * shape.keys + shape.num_experts) * FLOAT  # heads, attended, logits
    # Rows, what the first matrices give, panels of what the second is given, and results.
    routed = shape.top_k * ((shape.hidden + shape.expert) * panel + (2 * shape.expert + shape.hidden) * FLOAT)
    dense = (shape.hidden + shape.dense) * panel + (2 * shape.dense + shape.hidden) * FLOAT
    return int(WORKSPACE_GROWTH * workspace + NATIVE_GROWTH * (attention + max(routed, dense)))


def _torch_bytes(shape: StepShape) -> int:
    """Bytes of a token in the widest layer: its residual stream with attention, or with experts."""
    attention = 2 * shape.queries + 2 * shape.keys
    routed = shape.top_k * (2 * shape.hidden + 3 * shape.expert)
    widest = max(attention, routed + shape.num_experts, 3 * shape.dense)
    in_float = shape.queries + shape.hidden  # sums of attention over several spans, and norms
    return TORCH_COPIES * shape.itemsize * (2 * shape.hidden + widest) + 2 * FLOAT * in_float


def _widest(config: Any, *names: str) -> int:
    """The largest of some numbers of a config, of which each may be missing or a list of layers'; 0 for none."""
    values = [getattr(config, name, None) for name in names]
    numbers = [number for value in values for number in (value if isinstance(value, list | tuple) else [value])]
    return max((number for number in numbers if isinstance(number, int)), default=0)
