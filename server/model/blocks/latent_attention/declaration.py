"""Declares multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass

from server.kernels.native.structures.mixers import RopeKind
from server.model.blocks.declaration import RotaryDeclaration


@dataclass(frozen=True, kw_only=True)
class LatentAttention(RotaryDeclaration):
    """Queries, a latent for all heads, rotary positions of a part of both, attention, and the output projection."""

    scaling: float  # of scores
    window: int = 0  # tokens that a query sees, its own included; 0 for all
    sinks: str | None = None  # parameter of the module: a logit per head that takes weight and has no value
    keeps_pairs: bool = False  # rotated neighbours stay such, instead of all first numbers before all second ones
    takes_choice: bool = False  # it attends to keys that an indexer chose, its own or one of a layer before
    index_rope: RopeKind = RopeKind.NONE  # of the queries and keys of its indexer
    index_rotates_last: bool = False  # the indexer's rotated numbers are the last ones of a head
