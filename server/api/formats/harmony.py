"""gpt-oss' messages: what channel they are in and whom they are for stands before each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.calls import NAME, Calls
from server.api.formats.lark import Lark
from server.api.formats.source import Source, Steps, Stops
from server.api.turn import Piece, ReasoningPiece, TextPiece

CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
HEAD = Stops("<|message|>")
STRAY = frozenset({"<|channel|>", "<|constrain|>", "<|message|>"})  # within a message they mean nothing
BODY = Stops(*STRAY, "<|end|>", "<|return|>", "<|call|>", "<|start|>")


@dataclass(frozen=True)
class Harmony:
    """Analysis is reasoning; what has a recipient is a call, if there are tools; all else is said."""

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """Read a turn that begins behind its ``<|start|>assistant``."""
        while True:
            yield from source.take("<|start|>")
            source.mark()
            head = yield from self._head(source)
            source.unmark()
            channel, recipient = CHANNEL.search(head), RECIPIENT.search(head)
            name = recipient[1].removeprefix("functions.") if recipient else ""
            if calls.schemas and NAME.fullmatch(name):
                yield calls.open(source, name)
                stop = yield from self._body(source, calls.more, holds_space=True)
            elif channel and channel[1] == "analysis":
                stop = yield from self._body(source, ReasoningPiece)
            else:
                stop = yield from self._body(source, TextPiece)
            if stop == "<|start|>":
                source.unread(stop)
            if (yield from source.peek()) == "":
                return

    @property
    def markers(self) -> Sequence[str]:
        return "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:  # noqa: ARG002
        """One call: the model ends its turn with it."""
        heads = {
            name: lark.text(f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
            for name in schemas
        }
        return lark.either(f"{heads[name]} {lark.json(schema)}" for name, schema in schemas.items())

    @staticmethod
    def final(lark: Lark, body: str) -> str:
        """What is said."""
        return f"{lark.text('<|channel|>final<|message|>')} {body}"

    @staticmethod
    def preamble(lark: Lark) -> str:
        """What is said before a call, perhaps."""
        head = lark.text("<|channel|>commentary<|message|>")
        return f"({head} {lark.until('<|end|>')} {lark.text('<|start|>assistant')})?"

    @staticmethod
    def analysis(lark: Lark) -> str:
        """Some analysis perhaps, before anything else."""
        head = lark.text("<|channel|>analysis<|message|>")
        return f"({head} {lark.until('<|end|>')} {lark.text('<|start|>assistant')})?"

    @staticmethod
    def _body(source: Source, make: Callable[[str], Piece], *, holds_space: bool = False) -> Steps[str]:
        """Yield what a message says, without stray marks; what ended it is read, too."""
        space = ""
        while True:
            space, stop = yield from source.stream(BODY, make, space, holds_space=holds_space)
            if stop not in STRAY:
                return stop

    @staticmethod
    def _head(source: Source) -> Steps[str]:
        """What stands before a message; nothing if the text begins at once."""
        yield from source.take("assistant")
        yield from source.skip_space()
        for begin in ("<|channel|>", "to=", "<|message|>"):
            if (yield from source.take(begin)):
                source.unread(begin)
                head, stop = yield from source.collect(HEAD)
                if stop:
                    return head
                break
        source.rewind()
        return ""
