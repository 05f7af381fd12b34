"""Turns that say what they say as it is, with reasoning between two tags before it, and calls behind others."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.formats.calls import Calls, CallSyntax, MalformedCallError
from server.api.formats.source import Source, Steps, Stops
from server.api.turn import ReasoningPiece, TextPiece


@dataclass(frozen=True)
class Thinking:
    """The tags that reasoning stands between."""

    begin: str
    end: str


@dataclass(frozen=True)
class TaggedTurn:
    """Reads a turn.

    Args:
        thinking: the tags of reasoning, if the model reasons.
        is_thinking: whether the prompt ends within the reasoning.
        syntax: of calls, if there are tools.
        silent: markers that are no text where they mean nothing.

    """

    thinking: Thinking | None = None
    is_thinking: bool = False
    syntax: CallSyntax | None = None
    silent: Sequence[str] = ()

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        if self.thinking is not None:
            yield from self._think(source, calls, self.thinking)
        yield from self._speak(source, calls)

    @property
    def _openers(self) -> Sequence[str]:
        return () if self.syntax is None else self.syntax.openers

    def _think(self, source: Source, calls: Calls, thinking: Thinking) -> Steps[None]:
        source.mark()
        yield from source.skip_space()
        if not (yield from source.take(thinking.begin)) and not self.is_thinking:
            source.rewind()
            return
        source.unmark()
        yield from source.skip_space()
        stops = Stops(*{thinking.end, *self._openers, *self.silent})
        before = ""
        while True:
            before, stop = yield from source.stream(stops, ReasoningPiece, before, holds_space=True)
            if stop in ("", thinking.end):
                break
            # A call is a draft if the reasoning goes on behind it; one that is never closed ends with its calls.
            if stop in self._openers and (yield from self._is_never(thinking.end, source)):  # noqa: SIM102
                if (yield from self._call(source, stop, calls)):
                    break
            before += self._as_text(stop)
        yield from source.skip_space()

    def _speak(self, source: Source, calls: Calls) -> Steps[None]:
        if self.syntax is not None and not self._openers:
            calls.only_known = True
            yield from self._call(source, "", calls)
        stops = Stops(*{*self._openers, *self.silent})
        holds_space = bool(self._openers) or calls.count > 0
        before = ""
        while True:
            before, stop = yield from source.stream(stops, TextPiece, before, holds_space=holds_space)
            if not stop:
                break
            if stop in self._openers and (yield from self._call(source, stop, calls)):
                before = ""
            else:
                before += self._as_text(stop)
        if before and not calls.count:
            yield TextPiece(before)

    @staticmethod
    def _is_never(text: str, source: Source) -> Steps[bool]:
        """Wait for a text, or for the end without it; nothing is read."""
        source.mark()
        _, found = yield from source.collect(Stops(text))
        source.rewind()
        return not found

    def _as_text(self, marker: str) -> str:
        return "" if marker in self.silent else marker

    def _call(self, source: Source, opener: str, calls: Calls) -> Steps[bool]:
        """Read calls behind an opener; False if there are none, and then nothing was read."""
        num_before = calls.count
        source.mark()
        try:
            if self.syntax is not None:
                yield from self.syntax.read(source, opener, calls)
        except MalformedCallError:
            source.rewind()
        source.unmark()
        return calls.count > num_before
