"""The engine: one thread that schedules, runs and postprocesses, step by step."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakSet

from expert_store import ExpertLoadError, ExpertStoreError
from server.model.step import SequenceChunk, StepOutput
from server.observability.statistics import EngineStatistics

from .advance import advance
from .block_manager import BlockManager
from .detokenizer import Detokenizer
from .embed import embed
from .logprobs import collect_prompt_logprobs
from .request import (
    DeadlineExceededError,
    EngineError,
    EngineUnavailableError,
    GenerationFailedError,
    GenerationRequest,
    QueueFullError,
    RequestRefusedError,
    RequestStatus,
    Timeline,
    TokenEvent,
    TokenStream,
    check_sampling,
    publish,
)
from .request_status import statuses
from .runner import ModelRunner
from .scheduler import Scheduled, Scheduler, SchedulerLimits
from .sequence import Sequence
from .stage import WorkingSetStage
from .text import TextAssembler
from .timing import note_event, note_stalls, note_start

STOPPING = "the server is shutting down"
RECLAIM_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What the engine accepts."""

    max_model_len: int
    max_queued: int
    scheduler: SchedulerLimits


class Engine:
    """Continuous batching over a model.

    Args:
        runner: runs the steps.
        blocks: the blocks of the runner's KV cache.
        limits: what is accepted.
        vocab_size: prompts may hold ids below it.
        eos_token_ids: tokens that end a sequence.
        detokenizer: for the text that follows a prompt, in which some special tokens are written.
        stage: says who decodes where not all experts fit; none is everybody.
        reclaim: is called before each step, and every ``RECLAIM_SECONDS`` while nothing runs and it returned True.
    """

    def __init__(
        self,
        runner: ModelRunner,
        blocks: BlockManager,
        limits: EngineLimits,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        detokenizer: Callable[[tuple[int, ...], frozenset[int]], Detokenizer],
        stage: WorkingSetStage | None = None,
        reclaim: Callable[[], bool] = lambda: False,
    ):
        self.statistics = EngineStatistics()
        self.clock = time.monotonic  # for deadlines and latencies
        self._runner, self._blocks, self._limits = runner, blocks, limits
        self._vocab_size, self._eos_token_ids, self._detokenizer = vocab_size, eos_token_ids, detokenizer
        self._stage, self._reclaim = stage, reclaim
        self._scheduler = Scheduler(blocks, limits.scheduler, stage, runner.release)
        self._inbox: list[Sequence] = []
        self._present: list[Sequence] = []  # all that the scheduler had when the last step began
        self._streams: WeakSet[TokenStream] = WeakSet()  # all that someone may still read
        self._num_submitted = 0
        self._checked_prompt: tuple[int, ...] = ()  # the last one; the choices of a request share theirs
        self._is_stopping = False
        self._changed = threading.Condition()  # guards _inbox, _present, _streams, _num_submitted and _is_stopping
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def halt(self) -> None:
        """Take nothing more, and end every open stream with an error; the thread ends after its step."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
            streams = list(self._streams)
        publish([(stream, EngineUnavailableError(STOPPING)) for stream in streams])

    def stop(self) -> None:
        """Halt, and wait for the thread."""
        self.halt()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    @property
    def max_model_len(self) -> int:
        return self._limits.max_model_len

    @property
    def num_submitted(self) -> int:
        """Requests taken in since the start."""
        return self._num_submitted

    @property
    def reads_whole(self) -> bool:
        return self._runner.reads_whole

    @property
    def hidden_size(self) -> int:
        return self._runner.hidden_size

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; see ``GenerationEngine.submit``."""
        self._check(request)
        sampling = request.sampling
        stream = TokenStream(request, asyncio.get_running_loop(), Timeline(self.clock()))
        before = () if self.reads_whole or request.pooling is not None else request.prompt_ids
        text = TextAssembler(self._detokenizer(before, sampling.written_tokens), sampling.stop)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        with self._changed:
            if not self.is_alive:
                raise EngineUnavailableError("the server takes no more requests")
            if len(self._inbox) + len(self._scheduler.waiting) >= self._limits.max_queued:
                self.statistics.num_refused += 1
                raise QueueFullError(f"{self._limits.max_queued} requests are waiting; try again later")
            self._num_submitted += 1
            sequence = Sequence(stream, text, seed, self._blocks.new_blocks(), self._num_submitted)
            self._inbox.append(sequence)
            self._streams.add(stream)
            self._changed.notify()
        return stream

    def statuses(self) -> list[RequestStatus]:
        """How far each request is; see ``GenerationEngine.statuses``."""
        with self._changed:
            others = [*self._present, *self._inbox]
        running = list(self._scheduler.running)
        is_held = (lambda _: False) if self._stage is None else self._stage.holds
        return statuses(running, others, is_held, self.clock())

    def _check(self, request: GenerationRequest) -> None:
        prompt = request.prompt_ids
        if not prompt:
            raise RequestRefusedError("the prompt is empty", "prompt")
        if prompt is not self._checked_prompt and (min(prompt) < 0 or max(prompt) >= self._vocab_size):
            unknown = next(token for token in prompt if not 0 <= token < self._vocab_size)
            raise RequestRefusedError(f"token id {unknown} is not below {self._vocab_size}", "prompt")
        self._checked_prompt = prompt
        total = len(prompt) + request.sampling.max_tokens
        if request.sampling.max_tokens < 0 or total > self._limits.max_model_len:
            raise RequestRefusedError(
                f"{len(prompt)} prompt tokens and max_tokens {request.sampling.max_tokens} do not fit the context of "
                f"{self._limits.max_model_len} tokens",
                "max_tokens",
            )
        most = self._limits.scheduler.max_batched_tokens
        largest = max((end - start for start, end in request.media.wholes), default=0) if request.media else 0
        if largest > most:
            raise RequestRefusedError(
                f"an image takes {largest} tokens, which have to fit a step of --max-batched-tokens {most}", "messages"
            )
        if self.reads_whole and request.sampling.prompt_logprobs is not None:
            raise RequestRefusedError("this model's encoder reads prompts, whose tokens have no logprobs", "logprobs")
        if not self.hidden_size and request.pooling is not None:
            raise RequestRefusedError("this model's encoder reads prompts, of which there is no embedding", "model")
        check_sampling(request.sampling, self._vocab_size)

    def _loop(self) -> None:
        error: EngineError = EngineUnavailableError(STOPPING)
        self.statistics.is_alive = True
        try:
            while self._wait_for_work():
                self.step()
        except Exception:
            log.exception("the engine died")
            error = GenerationFailedError("the engine died; see the server's log")
        finally:
            with self._changed:
                self._is_stopping = True
                left = [*self._inbox, *self._scheduler.running, *self._scheduler.waiting]
                self._inbox, self._present = [], []
            for sequence in left:
                self._scheduler.remove(sequence)
                self.statistics.finished["error"] += 1
                sequence.stream.fail(error)
            self._take_stock()
            self.statistics.is_alive = False

    def _wait_for_work(self) -> bool:
        """Take in what was submitted; False once the engine is to stop."""
        while not self._take_in(RECLAIM_SECONDS if self._reclaim() else None):
            pass
        return not self._is_stopping

    def _take_in(self, timeout_seconds: float | None) -> bool:
        """Wait until there is something to do, and take in what was submitted; False if there is nothing by then."""
        scheduler = self._scheduler
        with self._changed:
            self._present = [*scheduler.running, *scheduler.waiting]
            if not self._changed.wait_for(
                lambda: self._is_stopping or self._inbox or scheduler.running or scheduler.waiting, timeout_seconds
            ):
                return False
            for sequence in self._inbox:
                self._scheduler.add(sequence)
            self._present += self._inbox
            self._inbox.clear()
        return True

    def step(self) -> None:
        """One step, read aloud: drop who left, schedule, run, postprocess."""
        started = time.perf_counter()
        self._drop_ended()
        step = self._scheduler.schedule()
        if step:
            note_start(step, self.clock(), self.statistics.latencies)
            for part in [[item] for item in step] if self._runner.is_solo else [step]:
                self._attempt(part)
            is_decode = all(item.num_tokens == 1 for item in step)
            self.statistics.count_step("decode" if is_decode else "prefill", time.perf_counter() - started)
        self._take_stock()

    def _attempt(self, step: AbstractSequence[Scheduled]) -> None:
        """Run a step. If it fails, run its parts alone, so that only those fail that are to blame."""
        try:
            output = self._run(step)
        except (ExpertStoreError, RuntimeError) as error:
            if len(step) == 1:
                self._fail(step, error)
                return
            log.warning("a step of %d requests failed and is run one by one: %s", len(step), error)
            for item in step:
                self._attempt([item])
            return
        try:
            self._postprocess(step, output)
        except RuntimeError as error:
            self._fail(step, error)

    def _drop_ended(self) -> None:
        """Those whose client left, and those that took too long."""
        now = self.clock()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.stream.is_cancelled:
                self._scheduler.remove(sequence)
                self.statistics.finished["abort"] += 1
            elif sequence.is_late(now):
                self._scheduler.remove(sequence)
                self.statistics.finished["deadline"] += 1
                seconds = sequence.request.deadline_seconds
                sequence.stream.fail(DeadlineExceededError(f"the request was not done within {seconds:g} seconds"))

    def _run(self, step: AbstractSequence[Scheduled]) -> StepOutput:
        chunks = []
        for item in step:
            sequence, first = item.sequence, item.sequence.num_cached
            tokens = sequence.token_ids[first : first + item.num_tokens]
            blocks, last = sequence.blocks, first + item.num_tokens
            snapshot = self._blocks.plan_snapshot(blocks, sequence.content_ids, first, last)
            chunks.append(
                SequenceChunk(
                    tokens,
                    first,
                    blocks.tables,
                    item.num_logits,
                    sequence.slot,
                    blocks.resumes,
                    snapshot,
                    None if sequence.request.media is None else sequence.request.media.inputs,
                    num_prompt=len(sequence.request.prompt_ids),
                    num_hidden=item.num_hidden,
                    wants_experts=sequence.request.returns_experts and item.reaches_end,
                )
            )
        started = time.perf_counter()
        output = self._runner.run(chunks)
        for item, cost, chosen in zip(step, output.costs, output.chosen, strict=True):
            item.sequence.expert_cost.add(cost)
            item.sequence.chosen = chosen
        note_stalls(step, output.stalls)
        if self._stage is not None:
            self._stage.note(step, output, time.perf_counter() - started)
        return output

    def _postprocess(self, step: AbstractSequence[Scheduled], output: StepOutput) -> None:
        items: list[tuple[Sequence, TokenEvent | EngineError]] = [*embed(step, output)]
        ended, rows = [], []  # the sequences whose next token can be sampled, and where their logits are
        for item, end in zip(step, accumulate(item.num_logits for item in step), strict=True):
            sequence = item.sequence
            if sequence.num_generated == 0:
                self.statistics.prompt_tokens += item.num_tokens
            try:
                if sequence.wants_prompt_logits:
                    collect_prompt_logprobs(sequence, output.logits[end - item.num_logits : end])
            except GenerationFailedError as error:
                items.append((sequence, error))
                continue
            if item.reaches_end and sequence.pool is None:
                ended.append(sequence)
                rows.append(end - 1)
            sequence.num_cached += item.num_tokens
            self._blocks.keep(sequence.blocks, sequence.content_ids, sequence.num_cached)
        are_all = len(rows) == len(output.logits)
        events = advance(ended, output.logits if are_all else output.logits[rows], self._eos_token_ids)
        items += zip(ended, events, strict=True)
        now = self.clock()
        for sequence, event in items:
            if isinstance(event, EngineError):
                self._scheduler.remove(sequence)
                self.statistics.finished["error"] += 1
                log.error("%s failed: %s", sequence.request.request_id, event)
                continue
            self.statistics.generation_tokens += event.num_generated > 0
            note_event(sequence, event, now, self.statistics.latencies)
            if event.finish_reason is not None:
                self._scheduler.remove(sequence)
                self.statistics.finished[event.finish_reason.value] += 1
        publish([(sequence.stream, event) for sequence, event in items])

    def _fail(self, step: AbstractSequence[Scheduled], error: Exception) -> None:
        """End the requests of a step that failed; all others go on."""
        requests = ", ".join(item.sequence.request.request_id for item in step)
        if isinstance(error, ExpertLoadError):  # which names the file and what is wrong with it
            log.error("a step failed, and with it %s: %s", requests, error)
            reason = f"{error.key} can't be read"
        else:
            log.error("a step failed, and with it %s: %s", requests, error, exc_info=error)
            reason = "the model failed to compute this request"
        for item in step:
            self._scheduler.remove(item.sequence)
            self.statistics.finished["error"] += 1
            item.sequence.stream.fail(GenerationFailedError(f"{reason}; see the log"))

    def _take_stock(self) -> None:
        self.statistics.num_running = len(self._scheduler.running)
        self.statistics.num_waiting = len(self._scheduler.waiting)
        self.statistics.preemptions = self._scheduler.num_preemptions
        self.statistics.prefix_cache_queries = self._scheduler.num_queried_tokens
        self.statistics.prefix_cache_hits = self._scheduler.num_reused_tokens
        self.statistics.kv_cache_usage = self._blocks.usage
        if self._stage is not None:
            self.statistics.num_held = self._stage.num_held if self._scheduler.running else 0
            self.statistics.num_turns = self._stage.num_turns
            self.statistics.stall_share = self._stage.stall_share
