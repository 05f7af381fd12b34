"""Indexers that run as transformers' modules, and the keys that they choose.

A module with an indexer calls it with the rows of a complete step. Its forward is replaced by a call of the current
hooks, which run the original for each sequence with the index states of that sequence. The model passes what they
return on to attention unseen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import nn

from server.model.attention.indexer import BLOCK_SIZE
from server.model.errors import NotBatchableError
from server.model.hooks import current_hooks

INDEXED = "sparse-attention layers with an indexer"
ROWS, CACHE, MASK, POSITIONS = "hidden_states", "cache", "attention_mask", "position_ids"  # arguments of an indexer
POOLED = "compress_ratio"  # attribute of indexers that score means of keys, and return a mask
MAKES_MASK = "build_attention_mask_from_topk"  # method of attention modules that pass the choice on as a mask


@dataclass(frozen=True)
class KeyChoice:
    """The keys that the tokens of a step attend to, instead of all that they see."""

    masks: Sequence[torch.Tensor]  # by sequence, bool (1 or kv_heads, tokens, keys)


class IndexStates(Protocol):
    """The index states of one layer of one sequence, with the methods of transformers' cache and of its layers."""

    def update_indexer(self, states: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Keep the states of new tokens, ``(1, new, dim)``, and return those of all."""


class LayersOf:
    """A cache of transformers with the states of one layer alone.

    Args:
        states: of that layer.
    """

    def __init__(self, states: IndexStates):
        self._states = states

    @property
    def layers(self) -> Self:
        return self

    def __getitem__(self, layer: int) -> Self:
        del layer
        return self

    def update_indexer(self, states: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        self.keys = self._states.update_indexer(states, layer)
        return self.keys

    def get_seq_length(self) -> int:
        """Return the number of tokens whose states were returned last."""
        return self.keys.shape[-2]

    def update_index(self, states: torch.Tensor) -> torch.Tensor:
        """Keep states as MiniMax M3 has them, ``(1, 1, new, dim)``."""
        return self._states.update_indexer(states[0]).unsqueeze(0)

    def __getattr__(self, name: str) -> Any:
        """Refuse what else transformers' cache has.

        Raises:
            NotBatchableError: always; the indexer is of another kind.
        """
        raise NotBatchableError(f"the model has {INDEXED}, which use transformers' own cache ({name})")


@dataclass(frozen=True)
class IndexerCall:
    """A call of an indexer."""

    indexer: Any
    original: Callable[..., torch.Tensor]  # its own forward
    arguments: Mapping[str, Any]

    @property
    def layer(self) -> int:
        return int(self.indexer.layer_idx)

    @property
    def num_tokens(self) -> int:
        return int(self.arguments[ROWS].shape[1])

    def run(self, states: IndexStates, changes: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return what the original returns.

        Args:
            states: of the sequence.
            changes: other arguments.
        """
        return self.original(**{**self.arguments, **(changes or {}), CACHE: LayersOf(states)})

    def rows(self, first: int, last: int) -> dict[str, Any]:
        """Return the arguments for some of its rows."""
        return {name: self._part(value, first, last) for name, value in self.arguments.items()}

    def mask_of(self, chosen: torch.Tensor, first: int, num_keys: int) -> torch.Tensor:
        """Return a result as a mask of the keys that each token attends to, ``(1 or kv_heads, tokens, keys)``.

        Args:
            chosen: positions of keys ``(1, tokens, k)``, or numbers of blocks ``(1, kv_heads, tokens, k)``; those below
                zero stand for none.
            first: position of the first token.
        """
        places = chosen[0].long()
        size = int(getattr(self.indexer, BLOCK_SIZE)) if self.chooses_blocks(chosen) else 1
        places = places if self.chooses_blocks(chosen) else places.unsqueeze(0)
        num_places = -(-num_keys // size)
        taken = torch.zeros((*places.shape[:2], num_places + 1), dtype=torch.bool, device=places.device)
        taken.scatter_(-1, torch.where(places < 0, num_places, places), True)
        mask = taken[..., :num_places].repeat_interleave(size, -1)[..., :num_keys]
        return mask & causal_mask(places.shape[1], first, num_keys, places.device)

    @staticmethod
    def chooses_blocks(chosen: torch.Tensor) -> bool:
        """Return whether a result has numbers of blocks, of each head of keys."""
        return chosen.ndim == 4  # noqa: PLR2004

    def _part(self, value: Any, first: int, last: int) -> Any:
        if isinstance(value, tuple):
            return tuple(self._part(each, first, last) for each in value)
        if not isinstance(value, torch.Tensor):
            return value
        axis = next((axis for axis in (1, 2) if value.ndim > axis and value.shape[axis] == self.num_tokens), None)
        return value if axis is None else value.narrow(axis, first, last - first)


def causal_mask(num_tokens: int, first: int, num_keys: int, device: torch.device | None = None) -> torch.Tensor:
    """Return which keys the tokens of a sequence see from position ``first`` on, bool ``(tokens, keys)``."""
    positions = torch.arange(first, first + num_tokens, device=device)
    return torch.arange(num_keys, device=device) <= positions[:, None]


class WholeSequence:
    """The index states of a sequence that runs as a whole; ``shape`` is that of a token's, once there are some."""

    shape: tuple[int, torch.dtype] | None = None

    def update_indexer(self, states: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        del layer
        self.shape = states.shape[-1], states.dtype
        return states


def choose_of_sequence(call: IndexerCall, states: WholeSequence) -> Any:
    """Return what an indexer chooses for the rows of one complete sequence: blocks as a ``KeyChoice``.

    The positions may begin anywhere. An indexer of blocks takes the numbers of its blocks from them, and nothing else.
    """
    changes = {}
    if hasattr(call.indexer, BLOCK_SIZE) and POSITIONS in call.arguments:
        changes[POSITIONS] = torch.arange(call.num_tokens, device=call.arguments[ROWS].device).unsqueeze(0)
    chosen = call.run(states, changes)
    if not call.chooses_blocks(chosen):
        return chosen
    return KeyChoice([call.mask_of(chosen, 0, call.num_tokens)])


def hook_indexers(model: nn.Module) -> None:
    """Let the indexers of a model call the current hooks, if they take rows and a cache."""
    for indexer in filter(can_be_hooked, indexers_of(model)):
        indexer.forward = partial(_choose, indexer, indexer.forward)
    for attention in model.modules():
        if hasattr(attention, MAKES_MASK):
            setattr(attention, MAKES_MASK, _pass_on)


def can_be_hooked(indexer: Any) -> bool:
    """Return whether an indexer scores keys and takes rows and a cache, so that it can run sequence by sequence."""
    arguments = inspect.signature(indexer.forward).parameters
    is_pooled = hasattr(indexer, POOLED)
    return {ROWS, CACHE} <= arguments.keys() and isinstance(getattr(indexer, "layer_idx", None), int) and not is_pooled


def indexers_of(model: nn.Module) -> list[Any]:
    """Return the indexers of a model's layers."""
    found = [getattr(module, "indexer", None) for module in model.modules()]
    return [each for each in found if isinstance(each, nn.Module)]


def _pass_on(topk_indices: Any, **_: Any) -> Any:
    """Return a choice in the place of the mask of it."""
    return topk_indices


def _choose(indexer: nn.Module, original: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    return current_hooks().choose_keys(IndexerCall(indexer, original, arguments))
