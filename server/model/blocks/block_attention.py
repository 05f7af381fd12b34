"""BlockAttentionParts: parts of a layer attend to the residual stream as it was where blocks of layers began.

The rows of a token are these earlier states, in their order, and last the residual stream itself, which begins anew
with a block: with the results of its first mixer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from ctypes import addressof
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.structures.layers import BlockAttention, StreamMix
from server.model.architecture import set_implementations
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import Linear, no_matrix
from server.model.blocks.norms import Norm, norm_of

QUERY, NORM = "query", "norm"  # names in a module
STARTS, LAYERS_PER_BLOCK = "is_block_boundary", "n_layers_per_attn_res_block"  # attribute of a layer; key of a config
KEPT = "block_states"  # argument of a layer: the rows that are kept so far
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class BlockAttentionParts:
    """The parts of a module that attends to the rows of a token for a part of a layer, or for a model's head."""

    module: Any  # None: the part takes the residual stream alone
    queries: torch.Tensor | None  # float32 (queries, hidden)
    epsilon: float
    num_streams: int
    num_blocks: int = 0  # rows that are kept before the part
    starts_block: bool = False  # the residual stream begins anew with the part's results
    norms: Sequence[Norm] = ()  # of what further queries give, which a mixer takes for keys and for values
    is_last: bool = False

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a child of a layer or of a model's body; None if it is something else."""
        own, config = dict(module.named_parameters()), getattr(module, "config", None)
        norm = getattr(module, NORM, None)
        if own.keys() != {QUERY} or not isinstance(norm, nn.Module) or not hasattr(config, LAYERS_PER_BLOCK):
            return None
        size = own[QUERY].shape[-1]
        found = norm_of(norm, size)
        if found is None or not _attends(module, found.epsilon):
            return None
        queries = own[QUERY].detach().float().view(-1, size)
        return cls(module, queries, found.epsilon, num_streams_of(config))

    def parameters(self) -> Iterator[nn.Parameter]:
        if self.module is not None:
            yield from self.module.parameters()

    def places(self, first: int) -> Mapping[int, Linear]:
        """Return no linear layers that adapters add to: it has parameters alone."""
        del first
        return {}

    def build(self, kept: KeptTensors) -> StreamMix:
        """Describe it to the kernels.

        Args:
            kept: keeps its numbers.
        """
        by = kept.own(BlockAttention(queries=kept.keep(self.queries), norm_epsilon=self.epsilon))
        by.num_queries, by.num_blocks, by.starts_block = 1 + len(self.norms), self.num_blocks, int(self.starts_block)
        by.scaling = 1.0 if self.queries is None else self.queries.shape[1] ** -0.5
        for number, norm in enumerate(self.norms):
            by.norms[number] = kept.norm(norm)
        return StreamMix(
            logits=no_matrix(), blocks=addressof(by), num_streams=self.num_streams, is_last=int(self.is_last)
        )


def num_streams_of(config: Any) -> int:
    """Return the rows of a token: one of each block of layers, and the residual stream."""
    count: int = getattr(config, LAYERS_PER_BLOCK)
    return 1 - (-int(config.num_hidden_layers) // count)


def starts_block(layer: Any) -> bool:
    """Return whether a layer begins a block of layers."""
    return bool(getattr(layer, STARTS, False))


def in_layer(
    parts: Sequence[BlockAttentionParts], *, num_blocks: int, starts: bool, norms: Sequence[Norm]
) -> list[BlockAttentionParts]:
    """Return the parts of a layer's mixer and of its feed-forward part at their place in a model.

    Args:
        parts: of the feed-forward part, and before them those of the mixer, if it attends to rows.
        num_blocks: rows that are kept before the layer.
        starts: whether the layer begins a block.
        norms: of the rows that the mixer takes for keys and for values, if they are other ones than those for queries.
    """
    *own, inner = parts
    mixer = own[0] if own else replace(inner, module=None, queries=None)
    mixer = replace(mixer, num_blocks=num_blocks, starts_block=starts, norms=norms)
    return [mixer, replace(inner, num_blocks=num_blocks + starts)]


def kept_rows_of(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the rows that are kept before a layer, ``(tokens, blocks, hidden)``, of its arguments; None of others."""
    if not hasattr(layer, STARTS):
        return None
    kept: torch.Tensor = kwargs[KEPT] if KEPT in kwargs else args[1]
    return kept[0].float().clone()


def rows_around(
    layer: nn.Module, kept: torch.Tensor, given: torch.Tensor, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all rows of tokens before and after a layer, ``(tokens, streams, hidden)``.

    Rows of later blocks are embeddings, as in the beginning.

    Args:
        kept: ``(tokens, blocks, hidden)``.
        given, output: the residual stream, ``(tokens, hidden)``.
    """
    found = [parts for child in layer.children() if (parts := BlockAttentionParts.find(child)) is not None]
    count = found[0].num_streams if found else kept.shape[1] + 1
    after = torch.cat([kept, given.unsqueeze(1)], 1) if starts_block(layer) else kept
    first = (kept[:, :1] if kept.shape[1] else given.unsqueeze(1)).expand(-1, count, -1)
    before, behind = (
        torch.cat([rows, first[:, : count - 1 - rows.shape[1]], last.unsqueeze(1)], 1)
        for rows, last in ((kept, given), (after, output))
    )
    return before, behind


def _attends(module: Any, epsilon: float) -> bool:
    """Return whether a copy of a module with other queries gives the attention of these to normed rows."""
    copied, random = deepcopy(module).to("cpu", torch.float32), torch.Generator().manual_seed(0)
    set_implementations(copied.config, "eager")  # the module's own, which calls no hooks
    size = copied.query.shape[-1]
    copied.query = nn.Parameter(torch.randn(copied.query.shape, generator=random), requires_grad=False)
    rows = torch.randn((1, 2, 3, size), generator=random)  # of two tokens
    try:
        with torch.inference_mode():
            found = copied(rows[:, :, :-1], rows[:, :, -1])
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):  # a forward of another kind
        return False
    normed = rows[0] * torch.rsqrt(rows[0].square().mean(-1, keepdim=True) + epsilon)
    weights = (copied.query.view(-1, size) @ normed.transpose(1, 2) * size**-0.5).softmax(-1)  # (tokens, queries, rows)
    wanted = (weights @ normed).unbind(1)
    if not isinstance(found, tuple) or len(found) != len(wanted):
        return False
    pairs = zip(found, wanted, strict=True)
    return all(float((one[0] - other).abs().max()) <= TOLERANCE * float(other.abs().max()) for one, other in pairs)
