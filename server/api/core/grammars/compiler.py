"""Compiles grammars off the event loop, each once and within a time limit."""

import asyncio
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field

from server.api.core.errors.api_errors import InvalidRequestError, ServiceUnavailableError
from server.engine.interface import Grammar, GrammarSpec, RequestMemory, Reservation, TextCodec
from server.panics import panics_as_errors

MAX_SECONDS = 5.0
MAX_COMPILING = 2  # at a time; each has a thread
MAX_KEPT = 32  # compiled grammars that are cached
KEPT_SHARE = 4  # and they hold at most 1/4 of the memory for requests, beside the newest
# Memory of a compiled grammar while its lexer is of the least size, and of each byte of its text; measured in
# benchmarks/results/2026-11-28-epyc/memory-of-requests.json.
GRAMMAR_BYTES, TEXT_FACTOR = 3 << 19, 48


@dataclass
class GrammarCompiler:
    """Compiles and caches grammars for one model. Use it in the event loop's thread only.

    A grammar counts as memory of requests until neither the cache nor a request has it. Cached ones are dropped for
    requests that wait for memory.
    """

    codec: TextCodec
    memory: RequestMemory = field(default_factory=RequestMemory)
    max_seconds: float = MAX_SECONDS
    _compiling: OrderedDict[GrammarSpec, "_Compilation"] = field(default_factory=OrderedDict)  # also completed ones
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COMPILING))
    _loop: asyncio.AbstractEventLoop | None = None

    def __post_init__(self) -> None:
        self.memory.add_cache(self._drop_soon)

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Compile a grammar; requests for the same grammar share one compilation.

        Raises:
            InvalidRequestError: the compilation takes too long.
            ServiceUnavailableError: it did not begin in time, because others took too long.
            RequestRefusedError: the grammar can't be compiled, or takes more memory than the server can hold.
            RequestMemoryError: other requests hold the memory.

        """
        self._loop = asyncio.get_running_loop()
        compilation = self._compiling.get(spec)
        if compilation is None or compilation.task.cancelling():
            reservation = await self._reserve(spec)
            compilation = self._compiling.get(spec)  # another request may have begun it meanwhile
            if compilation is None or compilation.task.cancelling():
                compilation = self._begin(spec, reservation)
            else:
                reservation.release()
        self._compiling.move_to_end(spec)
        await compilation.wait(self.max_seconds)
        if compilation.task.done():
            return compilation.task.result()
        if not compilation.has_begun:
            raise ServiceUnavailableError("Too many grammars are being compiled: try again later.")
        raise InvalidRequestError(
            f"'{spec.param}' took longer than {self.max_seconds:g} seconds to compile: simplify it.", spec.param
        )

    def _drop_soon(self, nbytes: int) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop, nbytes)

    def _drop(self, nbytes: int) -> None:
        """Drop cached grammars of so many bytes, the oldest first."""
        for spec in [spec for spec, kept in self._compiling.items() if kept.task.done()]:
            if nbytes <= 0:
                break
            nbytes -= self._compiling.pop(spec).nbytes

    def _begin(self, spec: GrammarSpec, reservation: Reservation) -> "_Compilation":
        compilation = self._compiling[spec] = _Compilation(self.codec, spec, self._slots, reservation)
        compilation.task.add_done_callback(lambda task: self._forget_failure(spec, task))
        while len(self._compiling) > 1 and (
            len(self._compiling) > MAX_KEPT
            or sum(kept.nbytes for kept in self._compiling.values()) > self.memory.limit_bytes // KEPT_SHARE
        ):
            self._compiling.popitem(last=False)
        return compilation

    async def _reserve(self, spec: GrammarSpec) -> Reservation:
        """Take the memory of a grammar; cached ones are dropped for it, the oldest first."""
        reservation, nbytes = self.memory.reserve(), GRAMMAR_BYTES + TEXT_FACTOR * len(spec.text)
        reservation.check(nbytes, "The grammar", spec.param)
        while not reservation.take_now(nbytes):
            oldest = next((each for each, kept in self._compiling.items() if kept.task.done()), None)
            if oldest is None:
                await reservation.take(nbytes, "The grammar", spec.param)
                break
            del self._compiling[oldest]
        reservation.use_taken()
        return reservation

    def _forget_failure(self, spec: GrammarSpec, task: "asyncio.Task[Grammar]") -> None:
        has_failed = task.cancelled() or task.exception() is not None
        kept = self._compiling.get(spec)
        if has_failed and kept is not None and kept.task is task:
            del self._compiling[spec]


class _Compilation:
    """One compilation: waiting, running or done."""

    def __init__(self, codec: TextCodec, spec: GrammarSpec, slots: asyncio.Semaphore, reservation: Reservation) -> None:
        self._codec, self._spec, self._slots = codec, spec, slots
        self._reservation = reservation
        self.has_begun = False
        self._num_waiting = 0
        self.task = asyncio.create_task(self._run())

    @property
    def nbytes(self) -> int:
        """Bytes that the grammar holds; they become more if its lexer becomes larger."""
        return self._reservation.taken

    async def wait(self, max_seconds: float) -> None:
        """Wait at most ``max_seconds``; a compilation that has not begun is cancelled when its last waiter leaves."""
        self._num_waiting += 1
        try:
            if not self.task.done():
                await asyncio.wait([self.task], timeout=max_seconds)
        finally:
            self._num_waiting -= 1
            if not self._num_waiting and not self.has_begun:
                self.task.cancel()

    async def _run(self) -> Grammar:
        try:
            grammar = await self._in_thread()
        except BaseException:
            self._reservation.release()
            raise
        weakref.finalize(grammar, self._reservation.drop)
        return grammar

    async def _in_thread(self) -> Grammar:
        async with self._slots:
            self.has_begun = True
            loop = asyncio.get_running_loop()
            result: asyncio.Future[Grammar] = loop.create_future()
            # A compilation may never end, and a daemon thread does not keep the process alive as one of the pool would.
            thread = threading.Thread(target=self._compile, args=(loop, result), name="grammar", daemon=True)
            await asyncio.to_thread(thread.start)  # off the event loop: start() waits until the thread runs
            return await result

    def _compile(self, loop: asyncio.AbstractEventLoop, result: "asyncio.Future[Grammar]") -> None:
        grammar, error = None, None
        try:
            with panics_as_errors():
                grammar = self._codec.compile_grammar(self._spec, self._reservation.use_now)
        except Exception as caught:  # noqa: BLE001  raised in the waiting requests
            error = caught

        def settle() -> None:
            if result.cancelled():
                return
            if grammar is not None:
                result.set_result(grammar)
            elif error is not None:
                result.set_exception(error)

        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)
