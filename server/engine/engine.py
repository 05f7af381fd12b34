"""Continuous batching: one thread that schedules, executes and postprocesses, step by step."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from server.deferred_work import DeferredWork
from server.engine.admission.rotation import DecodeGroupRotation
from server.engine.block_salt import block_salt
from server.engine.deadline_watch import DeadlineWatch
from server.engine.engine_statistics import EngineStatistics
from server.engine.event_publisher import EventPublisher
from server.engine.interface import (
    EngineError,
    EngineUnavailableError,
    EventSink,
    GenerationFailedError,
    GenerationRequest,
    Grammar,
    GrammarSpec,
    QueueFullError,
    RequestStatus,
    RequestWeights,
    Timeline,
    TokenStream,
    publish,
)
from server.engine.kv.block_manager import BlockManager
from server.engine.latency_recording import record_start
from server.engine.pass_planning import PassLimits
from server.engine.postprocess import postprocess
from server.engine.prompt_costs import PromptCosts
from server.engine.prompt_passes import PromptPasses
from server.engine.request_validation import RequestValidator
from server.engine.runner import ModelRunner
from server.engine.scheduler import Scheduled, Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from server.engine.sequence_weights import SequenceWeights
from server.engine.status_snapshot import snapshot_statuses
from server.engine.step_executor import StepExecutor
from server.engine.submission_queue import SubmissionQueue
from server.engine.text.detokenizer import Detokenizer
from server.engine.text.stop_strings import TextAssembler
from server.model.step import StepOutput
from server.panics import panics_as_errors

if TYPE_CHECKING:
    from server.kernels.native.library import Kernels

STOPPING = "the server is shutting down"
RECLAIM_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """Limits of requests."""

    max_model_len: int
    max_queued: int
    scheduler: SchedulerLimits
    passes: PassLimits | None = None  # None runs all prompts by chunks


class Engine:
    """A ``GenerationEngine`` that batches requests continuously.

    Args:
        runner: runs the steps.
        blocks: the blocks of the runner's KV cache.
        limits: limits of requests.
        vocab_size: token ids of prompts are below it.
        eos_token_ids: tokens that end a sequence.
        detokenizer: makes a detokenizer for the text that follows a prompt, which writes out some special tokens.
        grammar: returns the compiled grammar of a request.
        weights: returns the weights of a request, the same object for all its sequences.
        kernels: choose the tokens; torch does without them.
        admission: chooses the sequences that decode while not all experts fit; None lets all of them decode.
        reclaim: called before each step, and every ``RECLAIM_SECONDS`` while nothing runs and its last call returned
            True.
        deferred: what the runner's steps run while other threads compute; None if they don't.
    """

    def __init__(
        self,
        runner: ModelRunner,
        blocks: BlockManager,
        limits: EngineLimits,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        detokenizer: Callable[[tuple[int, ...], frozenset[int]], Detokenizer],
        grammar: Callable[[GrammarSpec], Grammar],
        weights: Callable[[RequestWeights], SequenceWeights],
        kernels: Kernels | None = None,
        admission: DecodeGroupRotation | None = None,
        reclaim: Callable[[], bool] = lambda: False,
        deferred: DeferredWork | None = None,
    ):
        self.statistics = EngineStatistics()
        self.clock = time.monotonic  # for deadlines and latencies
        self._runner, self._blocks, self._limits = runner, blocks, limits
        self._eos_token_ids, self._detokenizer, self._kernels = eos_token_ids, detokenizer, kernels
        self._find_grammar, self._find_weights = grammar, weights
        self._admission, self._reclaim = admission, reclaim
        self._scheduler = Scheduler(
            blocks, limits.scheduler, admission, runner.release, allocates_ahead=runner.runs_ahead
        )
        self._validator = RequestValidator(
            runner, vocab_size, limits.max_model_len, limits.scheduler.max_batched_tokens
        )
        self._submissions = SubmissionQueue(self._scheduler, limits.max_queued)
        costs = None if limits.passes is None else PromptCosts(runner.expected_bytes, runner.missing_share)
        self._executor = StepExecutor(runner, blocks, admission, costs)
        self._passes: PromptPasses | None = None
        if limits.passes is not None and costs is not None:
            self._passes = PromptPasses(
                runner, self._scheduler, blocks, self._executor, costs=costs, limits=limits.passes
            )
        self._publisher = EventPublisher(self._scheduler, self.statistics, deferred)
        self._deadlines = DeadlineWatch(self._submissions.unfinished, lambda: self.clock())  # noqa: PLW0108  tests replace it
        self._discarded: deque[str | None] = deque()  # weights whose prefixes the next step discards; None for all
        self._waits = False  # every sequence waits for its weights
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._submissions.open()
        self._deadlines.start()
        self._thread.start()

    def wake(self) -> None:
        """Schedule again, as a waiting sequence may have its weights now; from any thread, at once."""
        self._submissions.wake()

    def discard_prefixes(self, version: str) -> None:
        """Free the KV cache of weights that were unloaded; from any thread, before the next step.

        Args:
            version: one of ``SequenceWeights.versions``.
        """
        self._discarded.append(version)
        self._submissions.wake()

    def reset_prefix_cache(self) -> None:
        """Let later requests reuse nothing of earlier ones; see ``GenerationEngine.reset_prefix_cache``."""
        self._discarded.append(None)
        self._submissions.wake()

    def halt(self) -> None:
        """Accept no more requests and end every open stream with an error; the thread ends after its step."""
        sinks = self._submissions.close()
        publish([(sink, EngineUnavailableError(STOPPING)) for sink in sinks])

    def stop(self) -> None:
        """Halt, and wait for the thread."""
        self.halt()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._submissions.is_open

    @property
    def max_model_len(self) -> int:
        return self._limits.max_model_len

    @property
    def num_submitted(self) -> int:
        """Requests accepted since the start."""
        return self._submissions.num_submitted

    @property
    def is_encoder_decoder(self) -> bool:
        return self._runner.is_encoder_decoder

    @property
    def is_encoder(self) -> bool:
        return self._runner.is_encoder

    @property
    def labels(self) -> tuple[str, ...]:
        return self._runner.labels

    @property
    def hidden_size(self) -> int:
        return self._runner.hidden_size

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; see ``GenerationEngine.submit``."""
        stream = TokenStream(request, asyncio.get_running_loop(), Timeline(self.clock()))
        self.accept(request, stream)
        return stream

    def accept(self, request: GenerationRequest, sink: EventSink) -> None:
        """Queue a request whose events go to a sink, with the errors of ``submit``; from any thread.

        Args:
            sink: its timeline begins now, by ``clock``.
        """
        self._validator.check(request)
        sampling = request.sampling
        before = () if self.is_encoder_decoder or request.pooling is not None else request.prompt_ids
        text = TextAssembler(self._detokenizer(before, sampling.written_tokens), sampling.stop)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        grammar = None if sampling.grammar is None else self._find_grammar(sampling.grammar)
        weights = None if request.weights is None else self._find_weights(request.weights)
        if weights is not None:
            weights.begin()
        blocks = self._blocks.new_blocks(block_salt(request, weights), () if weights is None else weights.versions)
        try:
            self._submissions.put(
                lambda arrival: Sequence(
                    request,
                    sink,
                    text,
                    seed=seed,
                    blocks=blocks,
                    arrival=arrival,
                    weights=weights,
                    is_whole=self.is_encoder,
                    grammar=grammar,
                )
            )
        except EngineError as error:
            if weights is not None:
                weights.end()
            self.statistics.num_refused += isinstance(error, QueueFullError)
            raise

    def statuses(self) -> list[RequestStatus]:
        """Return the progress of each request; see ``GenerationEngine.statuses``."""
        others = self._submissions.unfinished()  # before the running ones, so that none is missed
        running = list(self._scheduler.running)
        is_held = (lambda _: False) if self._admission is None else self._admission.is_held
        return snapshot_statuses(running, others, is_held, self.clock())

    def step(self) -> None:
        """Drop ended requests and prefixes of unloaded weights, schedule, execute, postprocess."""
        started = time.perf_counter()
        passes = self._passes
        self._drop_ended()
        step = self._schedule()
        for sequence, error in self._scheduler.failed:
            self._publisher.fail(sequence, error)
            log.error("request %s failed: %s", sequence.request.request_id, error)
        self._waits = not step and self._scheduler.waits_for_weights
        if step:
            record_start(step, self.clock(), self.statistics.latencies)
            num_tokens = 0
            for item in step:
                num_tokens += item.num_tokens
            is_decode = num_tokens == len(step)  # one token of each
            if not is_decode:  # its images may take long before its layers
                self._publisher.send_deferred()
            for part, result in self._executor.execute(step):
                self._publisher.send_deferred()  # nothing, unless the step has failed
                self._postprocess(part, result)
            self.statistics.count_step("decode" if is_decode else "prefill", time.perf_counter() - started)
        if passes is not None and passes.is_running:
            self._waits = False
            self._advance_pass(passes, time.perf_counter() - started if step else None)
        elif not step:
            self._runner.pause()
        if not step or not self._scheduler.running:
            self._publisher.send_deferred()
        self._update_statistics()

    def _schedule(self) -> list[Scheduled]:
        """Return the next step; begin a pass of prompts before it if they need one, and none runs."""
        passes = self._passes
        if passes is None:
            return self._scheduler.schedule()
        if begun := passes.begin(now := self.clock()):
            record_start(begun, now, self.statistics.latencies)
        step = self._scheduler.schedule()
        passes.give_way()
        return step

    def _drop_ended(self) -> None:
        """Drop requests that have ended, and prefixes of weights that were unloaded."""
        if self._passes is not None and self._passes.is_running:
            self._passes.drop_ended(self.clock())
        self._publisher.drop_ended(self.clock())
        while self._discarded:
            version = self._discarded.popleft()
            if version is None:
                if self._passes is not None:
                    self._passes.cancel()  # or what it has computed could be found
                self._blocks.forget_prefixes()
            else:
                self._blocks.discard(version)

    def _advance_pass(self, passes: PromptPasses, step_seconds: float | None) -> None:
        """Run units of the pass of prompts, and postprocess its steps once all have run.

        Args:
            step_seconds: time of the step beside it, if there was one.
        """
        self._publisher.send_deferred()
        passes.advance(step_seconds)
        for part, result in passes.finish(self.clock()):
            self._postprocess(part, result)
            self.statistics.count_step("prefill", passes.step_seconds)
        self._publisher.send_deferred()

    def _postprocess(self, step: AbstractSequence[Scheduled], result: StepOutput | Exception) -> None:
        """Publish the events of a step, or the error that it failed with."""
        if isinstance(result, Exception):
            self._publisher.fail_step(step, result)
            return
        for item in step:
            if not item.sequence.num_generated:
                self.statistics.prompt_tokens += item.num_tokens
        try:
            with panics_as_errors():
                events = postprocess(step, result, self._blocks, self._eos_token_ids, self._kernels)
            self._publisher.publish(events, self.clock())
        except RuntimeError as error:
            self._publisher.fail_step(step, error)

    def _loop(self) -> None:
        error: EngineError = EngineUnavailableError(STOPPING)
        self.statistics.is_alive = True
        try:
            with panics_as_errors(), torch.inference_mode():
                while self._wait_for_work():
                    self._deadlines.begin_step()
                    self.step()
                    self._deadlines.end_step()
        except Exception:
            log.exception("the engine died")
            error = GenerationFailedError("the engine died; see the server's log")
        finally:
            self._deadlines.stop()
            if self._passes is not None:
                self._passes.cancel()
            for sequence in self._submissions.drain():
                self._publisher.fail(sequence, error)
            self._update_statistics()
            self.statistics.is_alive = False

    def _wait_for_work(self) -> bool:
        """Wait for requests; return False once the engine is to stop."""
        while not self._submissions.move_to_scheduler(
            RECLAIM_SECONDS if self._reclaim() else None, can_run=not self._waits
        ):
            pass
        return self._submissions.is_open

    def _update_statistics(self) -> None:
        statistics, scheduler = self.statistics, self._scheduler
        statistics.num_running = len(scheduler.running)
        statistics.num_waiting = len(scheduler.waiting)
        statistics.preemptions = scheduler.num_preemptions
        statistics.prefix_cache_queries = scheduler.num_queried_tokens
        statistics.prefix_cache_hits = scheduler.num_reused_tokens
        if self._passes is not None:
            statistics.prefill_passes = self._passes.num_passes
            statistics.prefill_pass_saved_bytes = self._passes.saved_bytes
        statistics.kv_cache_usage = self._blocks.usage
        if self._admission is not None:
            statistics.num_held = self._admission.num_held if scheduler.running else 0
            statistics.num_slices = self._admission.num_slices
            statistics.stall_share = self._admission.stall_share
