"""What goes into one step of the model, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .prompt_media import PromptMedia
from .stalls import Stall


@dataclass(frozen=True)
class SequenceChunk:
    """Some new tokens of one sequence; its earlier ones are in the cache."""

    token_ids: Sequence[int]
    num_cached: int
    block_tables: Sequence[Sequence[int]]  # of each group of layers, blocks for cached and new tokens together
    num_logits: int = 1  # of the last tokens, how many want logits
    slot: int = 0  # the sequence's own among all that run, for what is kept of it besides blocks
    resumes: int | None = None  # another slot that has this for the tokens before, if not its own
    snapshot: int | None = None  # another slot that gets it for the tokens so far, too
    media: PromptMedia | None = None  # images of its prompt
    num_prompt: int = 0  # tokens of the sequence's prompt, for models that take it otherwise than what follows
    num_hidden: int = 0  # of the last tokens, how many want their hidden states
    wants_experts: bool = False  # whether to tell which experts its last token went to

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def shows_images(self) -> bool:
        """Whether some of its tokens are of a prompt with images."""
        return self.media is not None and self.num_cached < len(self.media.token_ids)


@dataclass
class ExpertCost:
    """What the experts of a step cost."""

    num_lookups: int = 0
    num_misses: int = 0  # of these, the ones that had to be read from disk
    stall_seconds: float = 0.0  # that compute waited for them
    bytes_read: int = 0  # of those that missed

    def add(self, other: ExpertCost) -> None:
        self.num_lookups += other.num_lookups
        self.num_misses += other.num_misses
        self.stall_seconds += other.stall_seconds
        self.bytes_read += other.bytes_read


Chosen = npt.NDArray[np.int16]  # (MoE layers in the order in which they run, k): the experts of a token, -1 for none


@dataclass(frozen=True)
class StepOutput:
    """What a step gives."""

    logits: torch.Tensor  # float32 (rows, vocabulary): each chunk's last ``num_logits`` tokens, chunk after chunk
    routing: Mapping[int, npt.NDArray[np.int64]]  # by MoE layer that all tokens go to, the experts of each (tokens, k)
    experts: ExpertCost
    costs: Sequence[ExpertCost] = ()  # of each chunk, as if its tokens alone had asked (``routing.costs_of``)
    chosen: Sequence[Chosen | None] = ()  # of each chunk, if it wants them, by its last token
    hidden: torch.Tensor | None = None  # float32 (rows, hidden): each chunk's last ``num_hidden`` tokens' last states
    stalls: Sequence[Stall] = ()  # of its layers, in the order of their coming
