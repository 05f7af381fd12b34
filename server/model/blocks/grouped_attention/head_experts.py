"""Experts that make the queries and the output of attention, of which a router gives each token some (JetMoE)."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.native.linear import plain_matrix
from server.kernels.native.structures.matrices import Matrix
from server.kernels.native.structures.mixers import HeadExperts
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors

EXPERTS, QUERY, OUTPUT = "experts", "input_linear", "output_linear"  # names of the parts in an attention
KEYS_AND_VALUES = "kv_proj"  # a projection of both


@dataclass(frozen=True)
class HeadExpertsParts:
    """The experts of an attention and their router; a softmax over a token's experts weights their outputs."""

    router: nn.Linear
    query: nn.Parameter  # (experts, kv_heads * key_dim, hidden)
    output: nn.Parameter  # (experts, hidden, kv_heads * value_dim)
    bias: nn.Parameter | None  # (hidden,), of the sum of outputs
    top_k: int

    @classmethod
    def find(cls, attention: nn.Module) -> Self | None:
        """Return the experts of an attention; None if it has none that are known."""
        experts: Any = getattr(attention, EXPERTS, None)
        query, output = (getattr(getattr(experts, name, None), "weight", None) for name in (QUERY, OUTPUT))
        router = getattr(getattr(experts, "router", None), "layer", None)
        if not isinstance(router, nn.Linear) or router.bias is not None:
            return None
        if any(not isinstance(each, nn.Parameter) or each.ndim != 3 for each in (query, output)):  # noqa: PLR2004
            return None
        return cls(router, query, output, getattr(experts, "bias", None), int(experts.top_k))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are known."""
        yield from self.router.parameters()
        yield from (self.query, self.output)
        if self.bias is not None:
            yield self.bias

    def choose(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the experts of each token, the best first: ``(tokens, hidden)`` to ``(tokens, k)``."""
        return F.linear(rows, self.router.weight).topk(self.top_k, dim=1).indices


class NativeHeadExperts:
    """The experts of an attention as the native kernels run them.

    Raises:
        UnsupportedLayerError: their weights have a format that the kernels do not read.
    """

    def __init__(self, parts: HeadExpertsParts):
        self.parts = parts
        kept = self._kept = KeptTensors()
        self.spec = HeadExperts(
            router=_plain(parts.router.weight),
            query=_plain(parts.query.detach().flatten(0, 1)),
            output=_plain(parts.output.detach().flatten(0, 1)),
            bias=kept.keep(parts.bias),
            num_experts=len(parts.query),
            top_k=parts.top_k,
        )

    @property
    def address(self) -> int:
        return addressof(self.spec)

    def chosen_of(self, queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the queries of each token's experts, ``(heads, tokens, dim)``.

        Args:
            queries: of all experts, ``(experts * kv_heads, tokens, dim)``.
            rows: that the attention takes, ``(tokens, hidden)``.
        """
        chosen = self.parts.choose(rows)  # (tokens, k)
        by_expert = queries.view(len(self.parts.query), -1, *queries.shape[1:])  # (experts, kv_heads, tokens, dim)
        by_token = by_expert.permute(2, 0, 1, 3)
        own: torch.Tensor = by_token.gather(1, chosen[:, :, None, None].expand(-1, -1, *by_token.shape[2:]))
        return own.permute(2, 1, 0, 3).flatten(0, 1)  # the experts of a head of keys lie together


def _plain(weight: torch.Tensor) -> Matrix:
    matrix = plain_matrix(weight)
    if matrix is None:
        raise UnsupportedLayerError(f"its attention has experts of {weight.dtype} that the kernels can't read in place")
    return matrix
