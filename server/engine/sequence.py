"""One request while the engine works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.model.step import ExpertCost

from .block_manager import SequenceBlocks
from .pooling import Pool
from .request import Chosen, ExpertUsage, GenerationRequest, Timeline, TokenLogprobs, TokenStream
from .sampling_state import SamplingState
from .text import TextAssembler
from .working_set import ExpertUse


@dataclass(eq=False)
class Sequence:
    """Tokens, how many of them are in the KV cache, and where."""

    stream: TokenStream
    text: TextAssembler
    seed: int
    blocks: SequenceBlocks
    arrival: int  # among all requests
    token_ids: list[int] = field(init=False)  # prompt and generated
    content_ids: list[int] = field(init=False)  # the same, with what is shown in the place of what stands for it
    sampling: SamplingState = field(init=False)
    num_cached: int = 0
    slot: int = -1  # among those that run, for what the model keeps of it besides blocks
    expert_use: ExpertUse | None = None  # what it chose, as far as that matters
    expert_cost: ExpertCost = field(default_factory=ExpertCost)  # of what it has computed so far
    chosen: Chosen | None = None  # experts of its last computed token, if they are asked for
    pool: Pool | None = field(init=False)  # of a prompt that is not continued
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the prompt's tokens from the second on

    def __post_init__(self) -> None:
        media = self.request.media
        self.token_ids = list(self.request.prompt_ids)
        self.content_ids = self.token_ids if media is None else list(media.content_ids)
        self.sampling = SamplingState(self.request.sampling, self.seed, self.token_ids, len(self.token_ids))

        self.pool = None if self.request.pooling is None else Pool(self.request.pooling)

    @property
    def timeline(self) -> Timeline:
        return self.stream.timeline

    @property
    def request(self) -> GenerationRequest:
        return self.stream.request

    def append(self, token_id: int) -> None:
        """Go on with a token."""
        self.token_ids.append(token_id)
        if self.content_ids is not self.token_ids:
            self.content_ids.append(token_id)

    def end_without_cut(self, first: int, last: int) -> int:
        """Where a piece of its tokens ends that was to end at ``last``, so that no image is cut that must not be."""
        media = self.request.media
        for start, end in () if media is None else media.wholes:
            if start < last < end:
                return start if start > first else end
        return last

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: by priority, then by arrival."""
        return self.request.priority, self.arrival

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def num_uncached(self) -> int:
        return len(self.token_ids) - self.num_cached

    @property
    def expert_usage(self) -> ExpertUsage:
        """What its experts have cost so far."""
        cost = self.expert_cost
        return ExpertUsage(cost.num_lookups, cost.num_misses, cost.bytes_read, cost.stall_seconds)

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether logits of its prompt's tokens are asked for and still to come."""
        return self.request.sampling.prompt_logprobs is not None and not self.num_generated

    @property
    def needs_all_tokens(self) -> bool:
        """Whether each token of its prompt has to be computed, also those that are in the cache already."""
        return self.wants_prompt_logits or (self.pool is not None and self.pool.pooling == "mean")

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        seconds = self.request.deadline_seconds
        return seconds is not None and now - self.timeline.submitted_at > seconds
