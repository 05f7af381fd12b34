"""Compiling grammars for requests: off the event loop, within a time, each once."""

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from server.api.errors import InvalidRequestError, ServiceUnavailableError
from server.engine.request import Grammar, GrammarSpec, TextCodec

MAX_SECONDS = 5.0
MAX_COMPILING = 2  # at once, however many wait: each has a thread of its own
MAX_KEPT = 32


@dataclass
class Grammars:
    """The grammars that were asked for lately, of one model; all of it in the loop's thread."""

    codec: TextCodec
    max_seconds: float = MAX_SECONDS
    _compiling: OrderedDict[GrammarSpec, "_Compilation"] = field(default_factory=OrderedDict)  # or done
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COMPILING))

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """The compiled grammar; requests for the same wait for one compilation.

        Raises:
            InvalidRequestError: it takes too long.
            ServiceUnavailableError: others took too long for it to begin.
            RequestRefusedError: it can't be compiled.

        """
        compilation = self._compiling.get(spec)
        if compilation is None or compilation.task.cancelling():
            compilation = self._compiling[spec] = _Compilation(self.codec, spec, self._places)
            compilation.task.add_done_callback(lambda task: self._forget_failure(spec, task))
            if len(self._compiling) > MAX_KEPT:
                self._compiling.popitem(last=False)
        self._compiling.move_to_end(spec)
        await compilation.wait(self.max_seconds)
        if compilation.task.done():
            return compilation.task.result()
        if not compilation.has_begun:
            raise ServiceUnavailableError("Too many grammars are being compiled: try again later.")
        raise InvalidRequestError(
            f"'{spec.param}' took longer than {self.max_seconds:g} seconds to compile: simplify it.", spec.param
        )

    def _forget_failure(self, spec: GrammarSpec, task: "asyncio.Task[Grammar]") -> None:
        has_failed = task.cancelled() or task.exception() is not None
        kept = self._compiling.get(spec)
        if has_failed and kept is not None and kept.task is task:
            del self._compiling[spec]


class _Compilation:
    """One compilation, waiting or under way or done."""

    def __init__(self, codec: TextCodec, spec: GrammarSpec, places: asyncio.Semaphore) -> None:
        self._codec, self._spec, self._places = codec, spec, places
        self.has_begun = False
        self._num_waiting = 0
        self.task = asyncio.create_task(self._run())

    async def wait(self, max_seconds: float) -> None:
        """Until it is done, or so long; what has not begun when nobody waits any more is given up."""
        self._num_waiting += 1
        try:
            if not self.task.done():
                await asyncio.wait([self.task], timeout=max_seconds)
        finally:
            self._num_waiting -= 1
            if not self._num_waiting and not self.has_begun:
                self.task.cancel()

    async def _run(self) -> Grammar:
        async with self._places:
            self.has_begun = True
            loop = asyncio.get_running_loop()
            result: asyncio.Future[Grammar] = loop.create_future()
            # One of its own, for it may not end; it does not keep the process alive, as one of the default pool would.
            thread = threading.Thread(target=self._compile, args=(loop, result), name="grammar", daemon=True)
            await asyncio.to_thread(thread.start)  # which waits for it to run
            return await result

    def _compile(self, loop: asyncio.AbstractEventLoop, result: "asyncio.Future[Grammar]") -> None:
        grammar, error = None, None
        try:
            grammar = self._codec.compile_grammar(self._spec)
        except Exception as caught:  # noqa: BLE001  it is raised where the grammar is waited for
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
