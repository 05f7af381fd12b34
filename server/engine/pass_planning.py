"""Planning of passes: the prompts of one, and the steps that chunked scheduling would make of them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.kv.block_manager import BlockManager
from server.engine.prompt_costs import PromptCosts, PromptRates
from server.engine.scheduler import Scheduled, Scheduler
from server.engine.sequence import PassProgress, Sequence
from server.engine.step_executor import StepExecutor
from server.model.step import SequenceChunk

MIN_PIECE_TOKENS = 32  # a shorter rest of a prompt touches few experts, so that a step of its own costs little
SPARE_DECODE_TOKENS = 64  # a pass leaves blocks for so many more tokens of each sequence that decodes


@dataclass(frozen=True)
class PassLimits:
    """Limits of passes of prompts."""

    max_tokens: int  # in one pass
    step_tokens: int  # in one step of a pass
    takes_all: bool = False  # whether even short prompts run as passes


@dataclass(frozen=True)
class PassStep:
    """A step of a pass."""

    items: list[Scheduled]
    chunks: list[SequenceChunk]  # with tables of blocks as they are for this step


@dataclass
class PassPlan:
    """The steps of a pass, in order, and its sequences."""

    steps: list[PassStep] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps."""
        return sum(item.num_tokens for step in self.steps for item in step.items)


class PassPlanner:
    """Chooses the prompts of passes, and schedules all steps of a pass at once.

    Args:
        scheduler: holds the sequences.
        blocks: the blocks of the KV cache.
        executor: describes chunks to the model.
        costs: of prompts. Before it has measured any, a pass begins where prompts need several steps or miss most of
            their experts.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        blocks: BlockManager,
        executor: StepExecutor,
        *,
        costs: PromptCosts,
        limits: PassLimits,
    ):
        self._scheduler, self._blocks, self._executor = scheduler, blocks, executor
        self._costs, self._limits = costs, limits
        self._min_piece = 2 if limits.takes_all else MIN_PIECE_TOKENS

    def is_for_pass(self, sequence: Sequence) -> bool:
        """Return whether a sequence's prompt is one for a pass."""
        if len(sequence.token_ids) - sequence.num_cached < self._min_piece:
            return False
        if sequence.runs_by_chunks or sequence.is_whole:
            return False
        num_tokens = self.num_missing(sequence)
        return num_tokens >= self._min_piece and not self._is_short(num_tokens)

    def is_for_next_pass(self, sequence: Sequence, running: PassPlan, progress: float) -> bool:
        """Return whether a sequence waits for the end of the running pass, to be in the next one.

        Args:
            progress: of the running pass, 0 to 1.
        """
        if not self.is_for_pass(sequence):
            return False
        rates, num_tokens = self._rates, self.num_missing(sequence)
        if rates is None or self._scheduler.num_decoding or num_tokens > self._limits.step_tokens:
            return True
        return not rates.prefers_step(num_tokens, int((1 - progress) * running.num_tokens), len(running.sequences))

    def is_worthwhile(self) -> bool:
        """Return whether a pass should begin: first tokens come sooner, or a step would delay those that decode."""
        scheduler, step_tokens = self._scheduler, self._limits.step_tokens
        decodes = scheduler.num_decoding > 0
        if decodes and not scheduler.admits_new:
            return False
        candidates = self._candidates()
        if not candidates or decodes or self._limits.takes_all:
            return bool(candidates)
        rates, prompts = self._rates, [self.num_missing(sequence) for sequence in candidates]
        if rates is None:
            return sum(prompts) > step_tokens or self._costs.misses_most
        return rates.prefers_pass(prompts, step_tokens)

    def plan(self) -> PassPlan:
        """Allocate the blocks of as many steps as there may be, and return these.

        The first chunk of a sequence may take the blocks of sequences after it, as it may in a step; later chunks take
        free ones. The chunks of a sequence that finds none run in a later pass.
        """
        scheduler, step_tokens = self._scheduler, self._limits.step_tokens
        plan, starts = PassPlan(), dict[Sequence, int]()
        candidates = self._candidates()
        unfinished: list[Sequence] = []  # sequences of the pass that have tokens left
        left = self._limits.max_tokens
        while left >= step_tokens or not plan.steps:
            step, budget = PassStep([], []), step_tokens
            budget -= self._continue(unfinished, step, budget)
            while candidates and budget > 0:
                sequence, num_preemptions = candidates.pop(0), scheduler.num_preemptions
                count = self._begin(sequence, step, budget, is_first=not starts)
                if count:
                    starts[sequence] = sequence.num_cached
                    budget -= count
                    if self._describe_last(step, is_first=True):
                        unfinished.append(sequence)
                if count is None or scheduler.num_preemptions != num_preemptions:
                    candidates.clear()  # those after it lack blocks or slots, too
            if not step.items:
                break
            plan.steps.append(step)
            left -= sum(item.num_tokens for item in step.items)
        for sequence, start in starts.items():
            sequence.in_pass = PassProgress(sequence.num_cached - start)
            sequence.num_cached = start
        plan.sequences = list(starts)
        return plan

    @property
    def _rates(self) -> PromptRates | None:
        return None if self._limits.takes_all else self._costs.rates

    def _is_short(self, num_tokens: int) -> bool:
        """Return whether a step with so many tokens takes no longer than one of the sequences that decode."""
        rates = self._rates
        if rates is None or num_tokens > self._limits.step_tokens or not self._scheduler.num_decoding:
            return False
        # The estimate of reads takes longer, and is asked for each waiting sequence before each step.
        computes_longer = num_tokens * rates.token_seconds > rates.decode_seconds
        return not computes_longer and rates.step_seconds(num_tokens) <= rates.decode_seconds

    def _candidates(self) -> list[Sequence]:
        """Return the sequences that should share a pass, in order."""
        running = (sequence for sequence in self._scheduler.running if sequence.in_pass is None)
        found = [sequence for sequence in (*running, *self._scheduler.waiting) if self.is_for_pass(sequence)]
        found.sort(key=lambda sequence: sequence.order)
        rates = self._rates
        if rates is None or not found:
            return found
        return found[: rates.num_joining([self.num_missing(sequence) for sequence in found])]

    def num_missing(self, sequence: Sequence) -> int:
        """Return the number of tokens that a sequence has to compute."""
        if sequence in self._scheduler.running:
            return sequence.num_uncached
        if sequence.needs_all_tokens:
            return len(sequence.token_ids)
        return len(sequence.token_ids) - self._blocks.num_reusable(sequence.blocks, sequence.prefix_cache_ids)

    @property
    def _num_spare(self) -> int:
        """Tokens for which a pass leaves blocks to the sequences that decode."""
        return SPARE_DECODE_TOKENS * self._scheduler.num_decoding

    def _continue(self, unfinished: list[Sequence], step: PassStep, budget: int) -> int:
        """Add the next chunks of sequences to a step, and remove those that have no more; return the step's tokens."""
        left = budget
        for sequence in list(unfinished):
            if left <= 0:
                break
            count = self._scheduler.extend(sequence, step.items, left, self._num_spare)
            left -= count
            if not count or not self._describe_last(step, is_first=False):
                unfinished.remove(sequence)
        return budget - left

    def _begin(self, sequence: Sequence, step: PassStep, budget: int, *, is_first: bool) -> int | None:
        """Add a sequence's first chunk in the pass to a step; returns as ``Scheduler.begin``."""
        if sequence not in self._scheduler.running:
            return self._scheduler.begin(sequence, step.items, budget)
        if is_first:
            return self._scheduler.resume(sequence, step.items, budget)
        return self._scheduler.extend(sequence, step.items, budget, self._num_spare)

    def _describe_last(self, step: PassStep, *, is_first: bool) -> bool:
        """Add the chunk of the step's last item, and count its tokens as cached; return whether the sequence has more.

        The sequence's tables grow with later steps, and only its first chunk continues from a snapshot.
        """
        item = step.items[-1]
        chunk = self._executor.chunk(item)
        chunk.block_tables = [list(table) for table in chunk.block_tables]
        if not is_first:
            chunk.resumes = None
        step.chunks.append(chunk)
        item.sequence.num_cached += item.num_tokens
        return not item.reaches_end
