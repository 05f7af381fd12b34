"""Passes of prompts: several steps that run layer by layer, between the steps of sequences that decode."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence

from expert_store import ExpertStoreError
from server.engine.deadline_watch import deadline_error
from server.engine.interface import PassTime, publish
from server.engine.kv.block_manager import BlockManager
from server.engine.pass_planning import PassLimits, PassPlan, PassPlanner
from server.engine.prompt_costs import PromptCosts
from server.engine.runner import ModelRunner
from server.engine.scheduler import Scheduled, Scheduler
from server.engine.sequence import Sequence
from server.engine.step_executor import StepExecutor
from server.model.prompt_pass import PromptPass
from server.model.step import StepOutput
from server.panics import panics_as_errors

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.05  # of a unit for its experts, before the engine looks for other work
STEP_SHARE = 0.8  # time of units after a step of others, over the step's; below 1, as a unit may last longer

Outputs = Iterator[tuple[AbstractSequence[Scheduled], StepOutput]]


class PromptPasses:
    """Begins passes, runs their units, and ends them. One pass runs at a time.

    Sequences of a pass are running ones of the scheduler that are in none of its steps. A pass that is cancelled
    gives back all that it holds: its sequences wait again, and begin from their prefixes.

    Args:
        executor: describes chunks and counts costs.
        costs: measures each pass, and tells what prompts take.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        blocks: BlockManager,
        executor: StepExecutor,
        *,
        costs: PromptCosts,
        limits: PassLimits,
    ):
        self._runner, self._scheduler, self._executor, self._costs = runner, scheduler, executor, costs
        self._planner = PassPlanner(scheduler, blocks, executor, costs=costs, limits=limits)
        self._pass: PromptPass | None = None
        self._plan = PassPlan()
        self._has_given_back = False  # the running pass has no experts any more, and is to be cancelled after the step
        self._thread_id = 0  # of the engine, which alone may end the units of a pass
        self._continues = False  # a running sequence has tokens for another pass
        self._unit_seconds = 0.0  # of the last unit
        self._seconds = 0.0  # of the running pass's units
        self._began_at = 0.0
        self.num_passes = 0  # finished
        self.saved_bytes = 0  # by these; see ``PromptPass``
        self.step_seconds = 0.0  # of a step of the last finished pass, on average
        scheduler.cancel_pass = self.cancel
        runner.on_starvation(self._give_back)

    @property
    def is_running(self) -> bool:
        return self._pass is not None

    @property
    def sequences(self) -> AbstractSequence[Sequence]:
        """The sequences of the running pass."""
        return self._plan.sequences

    def begin(self, now: float) -> list[Scheduled]:
        """Begin a pass if prompts need one and none runs; return the first item of each of its sequences.

        Args:
            now: on the engine's clock.
        """
        if self._pass is not None or not (self._continues or self._scheduler.has_room) or not self._runner.can_pass:
            return []
        self._continues = False
        if not self._planner.is_worthwhile():
            return []
        self._plan = self._planner.plan()
        if not self._plan.steps:
            return []
        self._seconds, self._unit_seconds, self._began_at = 0.0, 0.0, now
        self._thread_id = threading.get_ident()
        started = time.perf_counter()
        try:
            with panics_as_errors():
                self._pass = self._runner.begin_pass([step.chunks for step in self._plan.steps])
        except (ExpertStoreError, RuntimeError) as error:
            self._fail(error)
            return []
        self._seconds += time.perf_counter() - started
        self._scheduler.waits_for_pass = self._waits
        self._executor.may_run_ahead = False
        first = {item.sequence: item for step in reversed(self._plan.steps) for item in step.items}
        return list(first.values())

    def drop_ended(self, now: float) -> None:
        """End streams of the running pass that are late; cancel it if no client waits any more.

        While one waits, the sequences of those that left stay until the pass ends, as they do in a step.

        Args:
            now: on the engine's clock.
        """
        for sequence in self._plan.sequences:
            if sequence.is_late(now) and not sequence.sink.is_cancelled:
                publish([(sequence.sink, deadline_error(sequence))])
                sequence.sink.cancel()
        if all(sequence.sink.is_cancelled for sequence in self._plan.sequences):
            self.cancel()

    def give_way(self) -> None:
        """Cancel the pass if it or a step beside it might find no slots for experts, as memory has become less."""
        if self._pass is not None and (self._has_given_back or not self._runner.can_pass):
            log.info("a pass of %d prompts ends, as the memory for experts has become too small", len(self.sequences))
            self.cancel()

    def advance(self, step_seconds: float | None) -> None:
        """Run units of the pass.

        Args:
            step_seconds: time of the step of other sequences that has just run. Units wait for their experts and run
                for ``STEP_SHARE`` of it, at least one if its experts come in that time. None if there was no step: one
                unit waits and runs.
        """
        if self._has_given_back:
            self.give_way()
        running = self._pass
        if running is None:
            return
        started = now = time.perf_counter()
        ends_at = started + (WAIT_SECONDS if step_seconds is None else STEP_SHARE * step_seconds)
        try:
            with panics_as_errors():
                while not running.is_finished and running.advance(wait_seconds=max(0.0, ends_at - now)):
                    before, now = now, time.perf_counter()
                    self._unit_seconds = now - before
                    if step_seconds is None or now + self._unit_seconds > ends_at:
                        break
        except (ExpertStoreError, RuntimeError) as error:
            self._fail(error)
            return
        self._seconds += time.perf_counter() - started
        for sequence in self._plan.sequences:
            if sequence.in_pass is not None:
                sequence.in_pass.share = running.progress

    def finish(self, now: float) -> Outputs:
        """End the pass if all its units have run, and yield its steps, each with its output, before the next one.

        A step whose sequences were removed after an earlier one is left out.

        Args:
            now: on the engine's clock.
        """
        running, plan = self._pass, self._plan
        if running is None or not running.is_finished:
            return
        for sequence in plan.sequences:
            if sequence.in_pass is not None:
                sequence.note_pass(PassTime(self._began_at, now, sequence.in_pass.num_tokens, len(plan.sequences)))
        self.saved_bytes += running.saved_bytes
        stall_seconds = 0.0
        self._detach()
        self.num_passes += 1
        self.step_seconds = self._seconds / len(plan.steps)
        outputs = running.finish()
        for index, step in enumerate(plan.steps):
            started = time.perf_counter()
            try:
                with panics_as_errors():
                    output = next(outputs)
            except (ExpertStoreError, RuntimeError) as error:
                rest = dict.fromkeys(item.sequence for step in plan.steps[index:] for item in step.items)
                self._leave_to_chunks([each for each in rest if each in self._scheduler.running], error)
                return
            seconds = self.step_seconds + time.perf_counter() - started
            stall_seconds += output.experts.stall_seconds
            left = [item.sequence for item in step.items if item.sequence in self._scheduler.running]
            if len(left) < len(step.items):
                for sequence in left:
                    self._scheduler.requeue(sequence)
                continue
            self._executor.account(step.items, step.chunks, output, seconds)
            yield step.items, output
        self._costs.note_pass(plan.num_tokens, self._seconds, stall_seconds)
        self._continues = any(sequence.num_uncached > 1 for sequence in plan.sequences)

    def cancel(self) -> None:
        """Cancel the running pass, if there is one; its sequences wait again."""
        running, plan = self._pass, self._plan
        self._end(running)
        for sequence in plan.sequences:
            self._scheduler.requeue(sequence)

    def _waits(self, sequence: Sequence) -> bool:
        """Return whether a waiting sequence must not begin while the pass runs."""
        return self._pass is not None and self._planner.is_for_next_pass(sequence, self._plan, self._pass.progress)

    def _give_back(self) -> None:
        """Give the experts of the pass back to a step that waits for slots, if memory has become less meanwhile."""
        is_own_step = threading.get_ident() == self._thread_id
        if is_own_step and self._pass is not None and not self._runner.can_pass:
            self._has_given_back = True
            self._cancel_units(self._pass)

    def _fail(self, error: Exception) -> None:
        """Cancel a pass that failed."""
        running, plan = self._pass, self._plan
        self._end(running)
        self._leave_to_chunks(plan.sequences, error)

    def _end(self, running: PromptPass | None) -> None:
        has_given_back = self._has_given_back
        self._detach()
        if running is not None and not has_given_back:
            self._cancel_units(running)

    def _cancel_units(self, running: PromptPass) -> None:
        try:
            with panics_as_errors():
                running.cancel()
        except RuntimeError:
            log.exception("a pass of prompts could not be cancelled")

    def _leave_to_chunks(self, sequences: AbstractSequence[Sequence], error: Exception) -> None:
        """Run the sequences of a pass that failed by chunks, where only the faulty ones fail."""
        log.warning("a pass of %d prompts failed; running them by chunks: %s", len(sequences), error)
        for sequence in sequences:
            sequence.runs_by_chunks = True
            self._scheduler.requeue(sequence)

    def _detach(self) -> None:
        """Let the sequences of the pass be in steps again."""
        for sequence in self._plan.sequences:
            sequence.in_pass = None
        self._pass, self._plan, self._has_given_back = None, PassPlan(), False
        self._scheduler.waits_for_pass = None
        self._executor.may_run_ahead = True
