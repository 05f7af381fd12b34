"""Keys of experts."""

from __future__ import annotations

from typing import NamedTuple

BASE = "base"  # the variant of the model's own weights


class ExpertKey(NamedTuple):
    """One expert of one MoE layer; a variant is another set of weights for the same place."""

    layer: int
    expert: int
    variant: str = BASE

    def __str__(self) -> str:
        suffix = "" if self.variant == BASE else f" ({self.variant})"
        return f"expert {self.expert} of layer {self.layer}{suffix}"
