"""Declares grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.kernels.native.structures.mixers import GateKind, RopeKind
from server.model.blocks.declaration import RotaryDeclaration


class QueryScale(StrEnum):
    """The functions of positions by which queries are scaled."""

    BY_STEPS = "steps"  # of chunks of positions, by a logarithm (Llama 4)
    BY_POWER = "power"  # of the position (Beam)
    BY_LOGARITHM = "logarithm"  # beyond a length (Inkling)


@dataclass(frozen=True, kw_only=True)
class GroupedAttention(RotaryDeclaration):
    """Queries, keys and values of heads, norms of heads, rotary positions, attention, and the output projection."""

    scaling: float  # of scores
    window: int = 0  # tokens that a query sees, its own included; 0 for all
    is_chunked: bool = False  # the window is a fixed chunk instead of a sliding one
    softcap: float = 0.0  # of scores; 0 for none
    sinks: str | None = None  # parameter of the module: a logit per head that takes weight and has no value
    gate: GateKind = GateKind.NONE  # function of the gates of results
    norms_rotated: bool = False  # norms of heads follow the rotation
    query_scale: QueryScale | None = None
    takes_other_rows: bool = False  # keys and values are made from other rows than queries, each with a norm of its own
    index_rope: RopeKind = RopeKind.NONE  # of the queries and keys of an indexer
