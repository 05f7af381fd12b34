"""Reads turns of reasoning between two tags, then text, with tool calls in the syntax of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.core.replies.deltas import ReasoningDelta, TextDelta
from server.api.tool_parsers.call_syntax import Calls, CallSyntax, MalformedCallError
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


@dataclass(frozen=True)
class Thinking:
    """The tags around reasoning."""

    begin: str
    end: str


@dataclass(frozen=True)
class TaggedTurn:
    """Reads a turn.

    Args:
        thinking: the tags around reasoning; None if the model does not reason.
        is_thinking: the prompt ends inside the reasoning.
        syntax: the syntax of tool calls; None if there are no tools.
        silent: special tokens that are dropped where they have no meaning.

    """

    thinking: Thinking | None = None
    is_thinking: bool = False
    syntax: CallSyntax | None = None
    silent: Sequence[str] = ()

    def read(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        if self.thinking is not None:
            yield from self._read_reasoning(buffer, calls, self.thinking)
        yield from self._read_text(buffer, calls)

    @property
    def _openers(self) -> Sequence[str]:
        return () if self.syntax is None else self.syntax.openers

    def _read_reasoning(self, buffer: TextBuffer, calls: Calls, thinking: Thinking) -> Steps[None]:
        buffer.mark()
        yield from buffer.skip_space()
        if not (yield from buffer.take(thinking.begin)) and not self.is_thinking:
            buffer.rewind()
            return
        buffer.unmark()
        yield from buffer.skip_space()
        stops = Stops(*{thinking.end, *self._openers, *self.silent})
        before = ""
        while True:
            before, stop = yield from buffer.stream(stops, ReasoningDelta, before, holds_space=True)
            if stop in ("", thinking.end):
                break
            # A call inside the reasoning is a draft if the reasoning is closed later; otherwise it ends the reasoning.
            if stop in self._openers and (yield from self._is_never(thinking.end, buffer)):  # noqa: SIM102
                if (yield from self._read_calls(buffer, stop, calls)):
                    break
            before += self._as_text(stop)
        yield from buffer.skip_space()

    def _read_text(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        if self.syntax is not None and not self._openers:
            calls.only_known = True
            yield from self._read_calls(buffer, "", calls)
        stops = Stops(*{*self._openers, *self.silent})
        holds_space = bool(self._openers) or calls.count > 0
        before = ""
        while True:
            before, stop = yield from buffer.stream(stops, TextDelta, before, holds_space=holds_space)
            if not stop:
                break
            if stop in self._openers and (yield from self._read_calls(buffer, stop, calls)):
                before = ""
            else:
                before += self._as_text(stop)
        if before and not calls.count:
            yield TextDelta(before)

    @staticmethod
    def _is_never(text: str, buffer: TextBuffer) -> Steps[bool]:
        """Wait until ``text`` or the end arrives, without reading; return True if ``text`` does not come."""
        buffer.mark()
        _, found = yield from buffer.collect(Stops(text))
        buffer.rewind()
        return not found

    def _as_text(self, marker: str) -> str:
        return "" if marker in self.silent else marker

    def _read_calls(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[bool]:
        """Read the calls after an opener; read nothing and return False if there are none."""
        num_before = calls.count
        buffer.mark()
        try:
            if self.syntax is not None:
                yield from self.syntax.read(buffer, opener, calls)
        except MalformedCallError:
            buffer.rewind()
        buffer.unmark()
        return calls.count > num_before
