"""State of one request while the engine works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field

from server.engine.admission.working_set import ExpertUse
from server.engine.interface import (
    AdapterShares,
    EventSink,
    ExpertUsage,
    GenerationRequest,
    Grammar,
    PassTime,
    RoutedExperts,
    Timeline,
    TokenLogprobs,
)
from server.engine.kv.block_manager import SequenceBlocks
from server.engine.pooler import Pooler
from server.engine.sampling.sampling_state import SamplingState
from server.engine.sequence_weights import SequenceWeights
from server.engine.text.stop_strings import TextAssembler
from server.model.chunk_weights import ChosenAdapters
from server.model.step import ExpertCost


@dataclass(eq=False)
class PassProgress:
    """The progress of a sequence in a pass of prompts; another thread may read it."""

    num_tokens: int = 0  # of the sequence in the pass
    share: float = 0.0  # the part of the pass's work that is done, 0 to 1


@dataclass(eq=False)
class Sequence:
    """The tokens of a request, and their place in the KV cache."""

    request: GenerationRequest
    sink: EventSink  # of its events
    text: TextAssembler
    seed: int
    blocks: SequenceBlocks
    arrival: int  # number among all requests
    weights: SequenceWeights | None = None  # beside the base model's; it has begun
    is_whole: bool = False  # its prompt runs in one step
    grammar: InitVar[Grammar | None] = None  # the compiled one of its sampling parameters
    token_ids: list[int] = field(init=False)  # prompt and generated tokens
    prefix_cache_ids: list[int] = field(init=False)  # the same, with image hashes instead of placeholders
    sampling: SamplingState = field(init=False)
    num_cached: int = 0
    in_pass: PassProgress | None = None  # of the pass that computes its next tokens
    runs_by_chunks: bool = False  # a pass with it has failed
    slot: int = -1  # number among running sequences; identifies its state in the model
    expert_use: ExpertUse | None = None  # None while all experts fit in memory
    expert_cost: ExpertCost = field(default_factory=ExpertCost)  # cost so far
    last_experts: RoutedExperts | None = None  # experts of its last computed token, if requested
    last_adapters: Mapping[str, float] | None = None  # factors of adapters for that token, if requested
    _routed: ChosenAdapters | None = None  # shares of adapters in the tokens since the last event
    pooler: Pooler | None = field(init=False)  # only for a prompt that is not continued
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # from the prompt's second token on

    def __post_init__(self, grammar: Grammar | None) -> None:
        media = self.request.media
        self.token_ids = list(self.request.prompt_ids)
        self.prefix_cache_ids = self.token_ids if media is None else list(media.prefix_cache_ids)
        self.sampling = SamplingState(self.request.sampling, self.seed, self.token_ids, len(self.token_ids), grammar)
        self.pooler = None if self.request.pooling is None else Pooler(self.request.pooling)

    @property
    def timeline(self) -> Timeline:
        return self.sink.timeline

    def append(self, token_id: int) -> None:
        """Append a generated token."""
        self.token_ids.append(token_id)
        if self.prefix_cache_ids is not self.token_ids:
            self.prefix_cache_ids.append(token_id)

    def end_without_split(self, first: int, last: int) -> int:
        """Return where a chunk from ``first`` to ``last`` (exclusive) should end so that it splits no image span."""
        media = self.request.media
        for start, end in () if media is None else media.unsplit_spans:
            if start < last < end:
                return start if start > first else end
        return last

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: priority, then arrival."""
        return self.request.priority, self.arrival

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def may_continue(self) -> bool:
        """True if a token may follow the one that is chosen next."""
        return self.num_generated + 1 < self.request.sampling.max_tokens

    @property
    def num_computed(self) -> int:
        """Tokens that are computed, those that a pass has computed in part included."""
        progress = self.in_pass
        return self.num_cached if progress is None else self.num_cached + int(progress.share * progress.num_tokens)

    @property
    def num_uncached(self) -> int:
        return len(self.token_ids) - self.num_cached

    @property
    def expert_usage(self) -> ExpertUsage:
        """Cost of its experts so far."""
        cost = self.expert_cost
        return ExpertUsage(
            cost.num_lookups,
            cost.num_misses,
            cost.bytes_read,
            cost.stall_seconds,
            cost.num_dropped,
            cost.remote_bytes,
            len(self.timeline.passes),
        )

    def note_pass(self, pass_time: PassTime) -> None:
        """Note a pass that has computed some of its tokens."""
        self.timeline.passes = [*self.timeline.passes, pass_time]

    @property
    def wants_prompt_logits(self) -> bool:
        """True if logits of its prompt's tokens are requested and not yet computed."""
        return self.request.sampling.prompt_logprobs is not None and not self.num_generated

    @property
    def needs_all_tokens(self) -> bool:
        """True if every token of its prompt must be computed, even if it is in the cache."""
        return self.wants_prompt_logits or (self.pooler is not None and self.pooler.pooling == "mean")

    def note_adapters(self, routed: ChosenAdapters | None) -> None:
        """Count the adapters that were chosen for tokens, if they are chosen so."""
        if routed is not None:
            self._routed = routed if self._routed is None else self._routed + routed

    def take_adapter_shares(self) -> AdapterShares | None:
        """Return what ``note_adapters`` has counted since the last call."""
        routed, self._routed = self._routed, None
        choice = None if self.weights is None else self.weights.by_token
        return None if routed is None or choice is None else AdapterShares(choice, routed.num_tokens, routed.shares)

    def is_late(self, now: float) -> bool:
        """Return whether its deadline has passed."""
        seconds = self.request.deadline_seconds
        return seconds is not None and now - self.timeline.submitted_at + self.request.spent_seconds > seconds
