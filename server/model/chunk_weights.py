"""ChunkWeights: the weights that one sequence of a step runs with beside the base model's. Does not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.model.expert_variant import ExpertVariant

if TYPE_CHECKING:
    from server.model.lora_adapter import LoraAdapter


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter and the factor of what it adds."""

    adapter: LoraAdapter
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterChooser:
    """Chooses adapters for each token at each linear layer (``server.model.adapters.chosen_adapters``).

    Args:
        adapters: to choose from, without repetition; at a layer, those that add to it.
        top_k: the most that a token has at a layer.
        temperature: divides their scores before the softmax.
        is_signed: whether an adapter's score is ``x . v``, as for a trained gate, and not ``|x . v|``.
    """

    adapters: tuple[LoraAdapter, ...]
    top_k: int = 3
    temperature: float = 1.0
    is_signed: bool = False


@dataclass(frozen=True)
class ChosenAdapters:
    """The share of each adapter in tokens that adapters were chosen for, one by one.

    Args:
        shares: by the adapter's name, the sum over tokens of its mean factor over the linear layers.
        num_tokens: the sum of all shares.
        last: the shares in the last of these tokens, if the chunk wants them.
    """

    shares: Mapping[str, float]
    num_tokens: int
    last: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, later: ChosenAdapters) -> ChosenAdapters:
        shares = {name: self.shares.get(name, 0.0) + share for name, share in later.shares.items()}
        return ChosenAdapters({**self.shares, **shares}, self.num_tokens + later.num_tokens, later.last)

    def spread(self, num_tokens: int) -> ChosenAdapters:
        """Return the same mean shares for another number of tokens."""
        scale = num_tokens / max(1, self.num_tokens)
        return ChosenAdapters({name: share * scale for name, share in self.shares.items()}, num_tokens, self.last)


@dataclass(frozen=True)
class ChunkWeights:
    """The expert variant and the adapters of one sequence; equal ones compute alike.

    Args:
        adapters: those with a fixed factor.
        chooser: chooses others; the factors of an adapter that is among both add up.
    """

    variant: ExpertVariant | None = None
    adapters: tuple[WeightedAdapter, ...] = ()
    chooser: AdapterChooser | None = None

    def adapters_of_last(self, routed: ChosenAdapters | None) -> dict[str, float]:
        """Return the factor of each adapter for the last token of a chunk, by name.

        Args:
            routed: what was chosen for the tokens of the chunk; None if nothing was.
        """
        factors = {} if routed is None else dict(routed.last)
        for each in self.adapters:
            factors[each.adapter.name] = factors.get(each.adapter.name, 0.0) + each.weight
        return factors
