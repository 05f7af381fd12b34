"""Execution of a scheduled step on the model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence

from expert_store import ExpertStoreError
from server.engine.admission.rotation import DecodeGroupRotation
from server.engine.kv.block_manager import BlockManager
from server.engine.latency_recording import record_stalls
from server.engine.prompt_costs import PromptCosts
from server.engine.runner import ModelRunner
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.model.step import SequenceChunk, StepOutput, TokenChoice
from server.panics import panics_as_errors

log = logging.getLogger(__name__)

Step = AbstractSequence[Scheduled]


class StepExecutor:
    """Runs steps. If a step fails, it runs the step's sequences one by one, so that only the faulty ones fail.

    Args:
        admission: learns from each step.
        costs: measures each step, if any is measured.
    """

    def __init__(
        self,
        runner: ModelRunner,
        blocks: BlockManager,
        admission: DecodeGroupRotation | None,
        costs: PromptCosts | None,
    ):
        self._runner, self._blocks, self._admission, self._costs = runner, blocks, admission, costs
        self.may_run_ahead = True  # False while a pass runs, whose units run between steps

    def execute(self, step: Step) -> Iterator[tuple[Step, StepOutput | Exception]]:
        """Run a step. Yield each part that was run, with its output or error, before the next part runs."""
        for part in [[item] for item in step] if self._runner.is_sequential else [step]:
            yield from self._execute(part)

    def _execute(self, step: Step) -> Iterator[tuple[Step, StepOutput | Exception]]:
        result = self._try_run(step)
        if len(step) == 1 or not isinstance(result, Exception):
            yield step, result
            return
        log.warning("a step of %d requests failed; running them one by one: %s", len(step), result)
        for item in step:
            yield [item], self._try_run([item])

    def _try_run(self, step: Step) -> StepOutput | Exception:
        try:
            with panics_as_errors():
                return self._run(step)
        except (ExpertStoreError, RuntimeError) as error:
            return error

    def _run(self, step: Step) -> StepOutput:
        chunks = [self.chunk(item) for item in step]
        started = time.perf_counter()
        output = self._runner.run(chunks)
        seconds = time.perf_counter() - started
        self.account(step, chunks, output, seconds)
        if self._costs is not None:
            num_tokens = sum(item.num_tokens for item in step)
            if num_tokens == len(step):
                self._costs.note_decode(seconds)
            else:
                self._costs.note_chunks(num_tokens, seconds, output.experts.stall_seconds)
        return output

    def account(self, step: Step, chunks: AbstractSequence[SequenceChunk], output: StepOutput, seconds: float) -> None:
        """Count what a step that took so many seconds has cost its sequences."""
        of_adapters = output.routed or [None] * len(step)
        found = zip(step, chunks, output.costs, output.chosen, of_adapters, strict=True)
        for item, chunk, cost, experts, routed in found:
            sequence = item.sequence
            sequence.expert_cost.add(cost)
            sequence.last_experts = experts
            if sequence.weights is not None:
                sequence.weights.note_tokens(item.num_tokens, routed)
                sequence.note_adapters(routed)
            if chunk.wants_adapters:
                sequence.last_adapters = {} if chunk.weights is None else chunk.weights.adapters_of_last(routed)
        record_stalls(step, output.stalls)
        if self._admission is not None:
            self._admission.record_step(step, output, seconds)

    def chunk(self, item: Scheduled) -> SequenceChunk:
        """Describe the scheduled tokens of a sequence to the model."""
        sequence, request, blocks = item.sequence, item.sequence.request, item.sequence.blocks
        may_choose = self._runner.runs_ahead and item.num_tokens == item.num_logits == 1
        first, last = sequence.num_cached, sequence.num_cached + item.num_tokens
        return SequenceChunk(
            sequence.token_ids[first:last],
            first,
            blocks.tables,
            num_logits=item.num_logits,
            slot=sequence.slot,
            resumes=blocks.resumes,
            snapshot=self._blocks.plan_snapshot(blocks, sequence.prefix_cache_ids, first, last),
            media=None if request.media is None else request.media.inputs,
            num_prompt=len(request.prompt_ids),
            num_hidden=item.num_hidden,
            wants_experts=request.returns_experts and item.reaches_end,
            wants_adapters=request.returns_adapters and item.reaches_end,
            weights=None if sequence.weights is None else sequence.weights.chunk_weights,
            choice=self._choice(sequence) if may_choose else None,
        )

    def _choice(self, sequence: Sequence) -> TokenChoice | None:
        """Return how the next token of a decode is chosen; None if that takes more than its logits."""
        sampling = sequence.sampling
        if not sampling.is_plain or sampling.params.logprobs is not None:
            return None
        draw, next_draw = sampling.draws(2)
        runs_ahead = self.may_run_ahead and sequence.may_continue
        return TokenChoice(sampling.row, draw, next_draw if runs_ahead else None)
