"""Input and output of one step of the model. Importing this module does not load torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from server.model.chunk_weights import ChosenAdapters, ChunkWeights
from server.model.stalls import Stall

if TYPE_CHECKING:
    import torch

    from server.kernels.native.structures.sampling import RowSampling
    from server.model.prompt_media import PromptMedia


@dataclass(slots=True)
class TokenChoice:
    """Parameters of the choice of a sequence's next token, which depends on its logits alone."""

    row: RowSampling  # without a random number
    draw: float  # the random number, in ``[0, 1)``
    next_draw: float | None  # that of the token after it; None if the sequence ends before


@dataclass(slots=True)
class SequenceChunk:
    """Some new tokens of one sequence; its earlier ones are in the cache.

    Nobody changes a chunk. It is not frozen because each sequence has one in each step, and a frozen one takes far
    longer to make.
    """

    token_ids: Sequence[int]
    num_cached: int
    block_tables: Sequence[Sequence[int]]  # by group of layers, the blocks of cached and new tokens
    num_logits: int = 1  # last tokens to return logits of
    slot: int = 0  # the running sequence's own, for its state besides KV blocks
    resumes: int | None = None  # slot that holds the state of the tokens before, if not its own
    snapshot: int | None = None  # another slot to copy the state to after this chunk
    media: PromptMedia | None = None  # images of its prompt
    num_prompt: int = 0  # tokens of the sequence's prompt, for models that treat a prompt and its answer differently
    num_hidden: int = 0  # last tokens to return hidden states of
    wants_experts: bool = False  # whether to return the experts of its last token
    wants_adapters: bool = False  # whether to return the shares of adapters in its last token
    weights: ChunkWeights | None = None  # beside the base model's
    choice: TokenChoice | None = None  # the model may choose the next token so

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def shows_images(self) -> bool:
        """True if some of its tokens belong to a prompt with images."""
        return self.media is not None and self.num_cached < len(self.media.token_ids)

    def split(self, starts: Sequence[int]) -> list[SequenceChunk]:
        """Return the chunk in pieces.

        Args:
            starts: indices of the tokens that begin each piece but the first.
        """
        first, first_hidden = self.num_tokens - self.num_logits, self.num_tokens - self.num_hidden
        return [
            replace(
                self,
                token_ids=self.token_ids[start:end],
                num_cached=self.num_cached + start,
                num_logits=max(0, end - max(start, first)),
                num_hidden=max(0, end - max(start, first_hidden)),
            )
            for start, end in pairwise([0, *starts, self.num_tokens])
        ]


def positions_of(chunks: Sequence[SequenceChunk]) -> list[int]:
    """Return the positions of the tokens of all chunks of a step."""
    return [chunk.num_cached + i for chunk in chunks for i in range(chunk.num_tokens)]


@dataclass(slots=True)
class StepTokens:
    """The tokens of all chunks of a step in one row, as the model takes them."""

    token_ids: list[int]
    logit_rows: list[int]  # tokens to return logits of
    hidden_rows: list[int]  # tokens to return hidden states of
    has_media: bool  # a chunk is of a prompt with images
    has_weights: bool  # a chunk has weights beside the base model's

    @classmethod
    def of(cls, chunks: Sequence[SequenceChunk]) -> StepTokens:
        """Flatten the chunks of a step."""
        token_ids: list[int] = []
        logit_rows: list[int] = []
        hidden_rows: list[int] = []
        has_media = has_weights = False
        for chunk in chunks:
            has_media = has_media or chunk.media is not None
            has_weights = has_weights or chunk.weights is not None
            token_ids += chunk.token_ids
            end = len(token_ids)
            logit_rows += range(end - chunk.num_logits, end)
            hidden_rows += range(end - chunk.num_hidden, end)
        return cls(token_ids, logit_rows, hidden_rows, has_media, has_weights)


@dataclass
class ExpertCost:
    """The cost of the experts of a step."""

    num_lookups: int = 0
    num_misses: int = 0  # lookups that had to be read from disk
    stall_seconds: float = 0.0  # time that compute waited for experts
    bytes_read: int = 0  # for the misses, and ahead of a layer for experts that it used
    num_dropped: int = 0  # tokens that no expert took, once for each layer
    remote_bytes: int = 0  # of the bytes read, those that were on no disk

    def add(self, other: ExpertCost) -> None:
        self.num_lookups += other.num_lookups
        self.num_misses += other.num_misses
        self.stall_seconds += other.stall_seconds
        self.bytes_read += other.bytes_read
        self.num_dropped += other.num_dropped
        self.remote_bytes += other.remote_bytes


@dataclass(slots=True, eq=False)
class HostLogits:
    """Logits in the host's memory, which kernels find by their address: most steps need no tensor of them."""

    rows: npt.NDArray[np.float32]  # (rows, vocabulary), contiguous
    address: int  # of ``rows``

    @classmethod
    def empty(cls, num_rows: int, vocabulary: int) -> HostLogits:
        """Allocate logits."""
        rows = np.empty((num_rows, vocabulary), dtype=np.float32)
        return cls(rows, rows.ctypes.data)

    @classmethod
    def of(cls, logits: torch.Tensor) -> HostLogits:
        """Return logits that a tensor on the CPU holds; in its memory, if its rows are next to each other."""
        rows = np.ascontiguousarray(logits.numpy())
        return cls(rows, rows.ctypes.data)

    def tensor(self) -> torch.Tensor:
        """Return them as a tensor, which shares their memory."""
        import torch  # noqa: PLC0415  see the module

        return torch.from_numpy(self.rows)


RoutedExperts = npt.NDArray[np.int16]  # (MoE layers in running order, k): experts of a token, -1 for none


@dataclass(slots=True)
class StepOutput:
    """The results of a step."""

    # float32 (rows, vocabulary): each chunk's last ``num_logits`` tokens, chunk after chunk. On a device the next step
    # overwrites them. None where the model has chosen the tokens.
    scores: torch.Tensor | HostLogits
    routing: Mapping[int, npt.NDArray[np.int64]]  # experts (tokens, k), by MoE layer that all tokens go to
    experts: ExpertCost
    costs: Sequence[ExpertCost] = ()  # by chunk, for its own tokens (``cost_attribution.attribute_costs``)
    chosen: Sequence[RoutedExperts | None] = ()  # experts of each chunk's last token, for chunks that want them
    hidden: torch.Tensor | None = None  # float32 (rows, hidden): last states of each chunk's last ``num_hidden`` tokens
    stalls: Sequence[Stall] = ()  # in order of time
    routed: Sequence[
        ChosenAdapters | None
    ] = ()  # by chunk, for those with a router of adapters; none if no chunk has one
    label_logits: torch.Tensor | None = None  # float32 (chunks, labels), of a model with labels
    tokens: Sequence[int | None] | None = None  # the next token of each chunk, where the model has chosen them

    @property
    def logits(self) -> torch.Tensor:
        """``scores`` as a tensor."""
        return self.scores.tensor() if isinstance(self.scores, HostLogits) else self.scores

    @property
    def num_logits(self) -> int:
        """Rows of logits."""
        return len(self.scores.rows if isinstance(self.scores, HostLogits) else self.scores)
