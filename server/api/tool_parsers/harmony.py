"""Harmony, the format of gpt-oss: messages whose heads name a channel and a recipient."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.core.replies.deltas import Delta, ReasoningDelta, TextDelta
from server.api.tool_parsers.call_syntax import NAME, Calls
from server.api.tool_parsers.lark_grammar import LarkGrammar
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer

CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
HEAD = Stops("<|message|>")
STRAY = frozenset({"<|channel|>", "<|constrain|>", "<|message|>"})  # ignored within a message
BODY = Stops(*STRAY, "<|end|>", "<|return|>", "<|call|>", "<|start|>")


@dataclass(frozen=True)
class Harmony:
    """Reads messages: a recipient makes a tool call if there are tools, analysis is reasoning, the rest is text."""

    def read(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        """Read a turn from after its ``<|start|>assistant``."""
        while True:
            yield from buffer.take("<|start|>")
            buffer.mark()
            head = yield from self._head(buffer)
            buffer.unmark()
            channel, recipient = CHANNEL.search(head), RECIPIENT.search(head)
            name = recipient[1].removeprefix("functions.") if recipient else ""
            if calls.schemas and NAME.fullmatch(name):
                yield calls.open(buffer, name)
                stop = yield from self._body(buffer, calls.more, holds_space=True)
            elif channel and channel[1] == "analysis":
                stop = yield from self._body(buffer, ReasoningDelta)
            else:
                stop = yield from self._body(buffer, TextDelta)
            if stop == "<|start|>":
                buffer.unread(stop)
            if (yield from buffer.peek()) == "":
                return

    @property
    def markers(self) -> Sequence[str]:
        return "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:  # noqa: ARG002
        """Return the rule of one call, which ends the turn."""
        heads = {
            name: lark.text(f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
            for name in schemas
        }
        return lark.either(f"{heads[name]} {lark.json(schema)}" for name, schema in schemas.items())

    @staticmethod
    def final(lark: LarkGrammar, body: str) -> str:
        """Return the rule of the final message."""
        return f"{lark.text('<|channel|>final<|message|>')} {body}"

    @staticmethod
    def preamble(lark: LarkGrammar) -> str:
        """Return the rule of optional text before a call."""
        head = lark.text("<|channel|>commentary<|message|>")
        return f"({head} {lark.until('<|end|>')} {lark.text('<|start|>assistant')})?"

    @staticmethod
    def analysis(lark: LarkGrammar) -> str:
        """Return the rule of optional analysis at the beginning."""
        head = lark.text("<|channel|>analysis<|message|>")
        return f"({head} {lark.until('<|end|>')} {lark.text('<|start|>assistant')})?"

    @staticmethod
    def _body(buffer: TextBuffer, make: Callable[[str], Delta], *, holds_space: bool = False) -> Steps[str]:
        """Yield the deltas of a message, without stray markers; read and return the marker that ends it."""
        space = ""
        while True:
            space, stop = yield from buffer.stream(BODY, make, space, holds_space=holds_space)
            if stop not in STRAY:
                return stop

    @staticmethod
    def _head(buffer: TextBuffer) -> Steps[str]:
        """Read the head of a message; it is empty if the message has none."""
        yield from buffer.take("assistant")
        yield from buffer.skip_space()
        for begin in ("<|channel|>", "to=", "<|message|>"):
            if (yield from buffer.take(begin)):
                buffer.unread(begin)
                head, stop = yield from buffer.collect(HEAD)
                if stop:
                    return head
                break
        buffer.rewind()
        return ""
