"""The format of a model's turns: selects parsers, and builds grammars that force tool calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.api.core.replies.chat_turn import PlainText, TurnParser
from server.api.tool_parsers.call_syntax import Calls, CallSyntax
from server.api.tool_parsers.harmony import Harmony
from server.api.tool_parsers.incremental_parser import IncrementalParser
from server.api.tool_parsers.lark_grammar import LarkGrammar
from server.api.tool_parsers.model_families import CALL_FORMATS, HARMONY_SIGNS, OTHER, THINKING
from server.api.tool_parsers.tagged_turn import TaggedTurn, Thinking
from server.engine.interface import ChatTraits, GrammarSpec

Schemas = Mapping[str, Mapping[str, Any]]  # argument schemas by tool name


class Reasoning(StrEnum):
    """The state of the reasoning at the end of the prompt."""

    AHEAD = "ahead"
    BEGUN = "begun"
    OVER = "over"


@dataclass(frozen=True)
class ChatFormat:
    """The format of one model's turns.

    Args:
        syntax: the syntax of its tool calls.
        thinking: the tags around its reasoning; None if it does not reason.
        special: its special tokens, with their ids.
        harmony: the reader of turns in gpt-oss' harmony format; None for other formats.

    """

    syntax: CallSyntax
    thinking: Thinking | None
    special: Mapping[str, int]
    harmony: Harmony | None = None

    @classmethod
    def of(cls, traits: ChatTraits) -> "ChatFormat":
        """Recognize the format by the model's chat template."""
        if all(sign in traits.template for sign in HARMONY_SIGNS):
            return cls(OTHER, None, traits.special, Harmony())
        # Some templates contain no calls, but the tokenizer may have the markers of a syntax.
        syntax = _syntax(traits.template) or _syntax("\n".join(traits.markers)) or OTHER
        return cls(syntax, next((each for each in THINKING if _thinks(each, traits)), None), traits.special)

    @property
    def openers(self) -> Sequence[str]:
        """Texts that every call begins with; none if calls have no such text, or share it with other messages."""
        return () if self.harmony is not None else self.syntax.openers

    @property
    def separates_calls(self) -> bool:
        """True if a grammar can tell calls from text, so that text stays free while calls are not."""
        return self.harmony is not None or bool(self.syntax.openers)

    def reasoning_after(self, prompt_end: str, begun: str = "") -> Reasoning:
        """Return the state of the reasoning after a prompt with this end.

        Args:
            begun: the beginning of the turn, if the prompt contains it.

        """
        if self.thinking is not None and begun.strip():
            is_open = self.thinking.begin in begun and self.thinking.end not in begun.rpartition(self.thinking.begin)[2]
            return Reasoning.BEGUN if is_open else Reasoning.OVER
        end = prompt_end.rstrip()
        if self.thinking is not None and end.endswith(self.thinking.begin):
            return Reasoning.BEGUN
        if self.thinking is not None and end.endswith(self.thinking.end):
            return Reasoning.OVER
        return Reasoning.AHEAD

    def written_tokens(self, *, has_tools: bool) -> frozenset[int]:
        """Return the special tokens that the parser needs as text."""
        return frozenset(self.special[text] for text in self._silent(has_tools=has_tools))

    def parser(self, schemas: Schemas, reasoning: Reasoning, *, has_one_call: bool) -> TurnParser:
        """Return a parser of one turn; without tools it finds no calls."""
        calls = Calls(schemas)
        if self.harmony is not None:
            return IncrementalParser(self.harmony, calls, has_one_call=has_one_call)
        if self.thinking is None and not schemas:
            return PlainText()
        syntax = self.syntax if schemas else None
        turn = TaggedTurn(self.thinking, reasoning is Reasoning.BEGUN, syntax, self._silent(has_tools=bool(schemas)))
        return IncrementalParser(turn, calls, has_one_call=has_one_call)

    def grammar(
        self,
        spec: GrammarSpec | None,
        schemas: Schemas,
        reasoning: Reasoning,
        *,
        must_call: bool,
        has_one_call: bool,
        is_strict: bool = False,
    ) -> GrammarSpec | None:
        """Return the grammar of a turn, which may begin with reasoning; None if the turn is free.

        Args:
            spec: the grammar of the text; None if the text is free.
            schemas: argument schemas of the tools that may be called.
            must_call: a tool must be called.
            has_one_call: at most one tool may be called.
            is_strict: calls follow the schemas even if text is allowed, provided that a marker begins each call.

        """
        if is_strict and spec is None and not must_call and schemas:
            return self._strict_calls(schemas, reasoning, has_one_call=has_one_call)
        calls_too = bool(schemas) and spec is not None
        if not must_call and (spec is None or not (calls_too or self.thinking or self.harmony)):
            return spec
        lark = LarkGrammar(self.special)
        turns = []
        if spec is not None and not must_call:
            text = _text_rule(lark, spec)
            turns.append(text if self.harmony is None else self.harmony.final(lark, text))
        if schemas:
            syntax = self.syntax if self.harmony is None else self.harmony
            turns.append(syntax.rules(lark, schemas, has_one_call=has_one_call))
        start = f"{self._before(lark, reasoning)} ({' | '.join(turns)})"
        if spec is None or must_call:
            return GrammarSpec("lark", lark.grammar(start), "tools")
        return GrammarSpec("own" if spec.kind == "own" else "lark", lark.grammar(start), spec.param)

    def _strict_calls(self, schemas: Schemas, reasoning: Reasoning, *, has_one_call: bool) -> GrammarSpec | None:
        """Return a grammar of text and then optional calls; None if no marker separates calls from text."""
        lark = LarkGrammar(self.special)
        if self.harmony is not None:
            calls = self.harmony.rules(lark, schemas, has_one_call=has_one_call)
            text = self.harmony.final(lark, "/(?s:.*)/")
            start = f"{self.harmony.analysis(lark)} ({text} | {self.harmony.preamble(lark)} {calls})"
            return GrammarSpec("lark", lark.grammar(start), "tools")
        if not self.separates_calls:
            return None
        calls = self.syntax.rules(lark, schemas, has_one_call=has_one_call)
        text = lark.without(self.syntax.openers)
        start = turn = f"{text} ({calls})?"
        # Tags that are not special tokens can't be distinguished from text.
        if self.thinking is not None and self.thinking.end in self.special and reasoning is not Reasoning.OVER:
            thought = f"{text} ({lark.text(self.thinking.end)} {turn})?"
            begun = f"{lark.text(self.thinking.begin)} {thought}"
            start = thought if reasoning is Reasoning.BEGUN else f"({begun} | {turn})"
        return GrammarSpec("lark", lark.grammar(start), "tools")

    def _before(self, lark: LarkGrammar, reasoning: Reasoning) -> str:
        """Return the rule of the reasoning at the beginning of a turn."""
        if self.harmony is not None:
            return self.harmony.analysis(lark)
        if self.thinking is None or reasoning is Reasoning.OVER:
            return ""
        rest = f"{lark.until(self.thinking.end)} /\\n{{0,2}}/"
        return rest if reasoning is Reasoning.BEGUN else f"({lark.text(self.thinking.begin)} {rest})?"

    def _silent(self, *, has_tools: bool) -> Sequence[str]:
        """Return the special tokens that occur in the markers of this format."""
        markers: list[str] = []
        if self.harmony is not None:
            markers += self.harmony.markers
        if self.thinking is not None:
            markers += (self.thinking.begin, self.thinking.end)
        if has_tools:
            markers += self.syntax.markers
        return [text for text in self.special if any(text in marker for marker in markers)]


def _text_rule(lark: LarkGrammar, spec: GrammarSpec) -> str:
    """Return the rule of a text that follows a grammar."""
    if spec.kind == "own":
        return lark.nested(spec.text)
    return lark.json(json.loads(spec.text) if spec.kind == "json_schema" else {"type": "object"})


def _syntax(text: str) -> CallSyntax | None:
    return next((each.syntax for each in CALL_FORMATS if all(sign in text for sign in each.signs)), None)


def _thinks(thinking: Thinking, traits: ChatTraits) -> bool:
    tags = {thinking.begin, thinking.end}
    return any(tag in traits.template for tag in tags) or tags <= traits.markers.keys()
