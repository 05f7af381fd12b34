"""How the turns of a model are read, and how they are forced to be calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.api.formats.calls import Calls, CallSyntax
from server.api.formats.harmony import Harmony
from server.api.formats.lark import Lark
from server.api.formats.parser import FormatParser
from server.api.formats.table import CALL_FORMATS, HARMONY_SIGNS, OTHER, THINKING
from server.api.formats.tagged import TaggedTurn, Thinking
from server.api.turn import PlainText, TurnParser
from server.engine.request import ChatTraits, GrammarSpec

Schemas = Mapping[str, Mapping[str, Any]]  # of the arguments of tools, by their names


class Reasoning(StrEnum):
    """How far a turn's reasoning is where the prompt ends."""

    AHEAD = "ahead"
    BEGUN = "begun"
    OVER = "over"


@dataclass(frozen=True)
class ChatFormat:
    """The forms of one model.

    Args:
        syntax: of its calls.
        thinking: the tags of its reasoning, if it reasons.
        special: its special tokens.
        harmony: what reads its turns if they are harmony's.

    """

    syntax: CallSyntax
    thinking: Thinking | None
    special: Mapping[str, int]
    harmony: Harmony | None = None

    @classmethod
    def of(cls, traits: ChatTraits) -> "ChatFormat":
        """What a model's template tells."""
        if all(sign in traits.template for sign in HARMONY_SIGNS):
            return cls(OTHER, None, traits.special, Harmony())
        # Some templates show no calls; then the tokenizer may have the marks that calls are made of.
        syntax = _syntax(traits.template) or _syntax("\n".join(traits.markers)) or OTHER
        return cls(syntax, next((each for each in THINKING if _thinks(each, traits)), None), traits.special)

    def reasoning_after(self, prompt_end: str) -> Reasoning:
        """How far the reasoning is behind a prompt that ends so."""
        end = prompt_end.rstrip()
        if self.thinking is not None and end.endswith(self.thinking.begin):
            return Reasoning.BEGUN
        if self.thinking is not None and end.endswith(self.thinking.end):
            return Reasoning.OVER
        return Reasoning.AHEAD

    def written_tokens(self, *, has_tools: bool) -> frozenset[int]:
        """The special tokens by which a turn is read."""
        return frozenset(self.special[text] for text in self._silent(has_tools=has_tools))

    def parser(self, schemas: Schemas, reasoning: Reasoning, *, has_one_call: bool) -> TurnParser:
        """A parser of one turn; without tools nothing is a call."""
        calls = Calls(schemas)
        if self.harmony is not None:
            return FormatParser(self.harmony, calls, has_one_call=has_one_call)
        if self.thinking is None and not schemas:
            return PlainText()
        syntax = self.syntax if schemas else None
        turn = TaggedTurn(self.thinking, reasoning is Reasoning.BEGUN, syntax, self._silent(has_tools=bool(schemas)))
        return FormatParser(turn, calls, has_one_call=has_one_call)

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
        """What a turn has to be, after some reasoning perhaps; None if it is free.

        Args:
            spec: of what is said, if that is not free.
            schemas: of the tools that may be called.
            must_call: whether one has to be.
            is_strict: whether calls have to follow the schemas also where anything may be said instead, as far as a
                mark tells that they begin.

        """
        if is_strict and spec is None and not must_call and schemas:
            return self._strict_calls(schemas, reasoning, has_one_call=has_one_call)
        calls_too = bool(schemas) and spec is not None
        if not must_call and (spec is None or not (calls_too or self.thinking or self.harmony)):
            return spec
        lark = Lark(self.special)
        turns = []
        if spec is not None and not must_call:
            said = lark.json(json.loads(spec.text) if spec.kind == "json_schema" else {"type": "object"})
            turns.append(said if self.harmony is None else self.harmony.final(lark, said))
        if schemas:
            syntax = self.syntax if self.harmony is None else self.harmony
            turns.append(syntax.rules(lark, schemas, has_one_call=has_one_call))
        start = f"{self._before(lark, reasoning)} ({' | '.join(turns)})"
        return GrammarSpec("lark", lark.grammar(start), "tools" if spec is None or must_call else spec.param)

    def _strict_calls(self, schemas: Schemas, reasoning: Reasoning, *, has_one_call: bool) -> GrammarSpec | None:
        """Anything, and then perhaps calls; None if their beginning can't be told from what is said."""
        lark = Lark(self.special)
        if self.harmony is not None:
            calls = self.harmony.rules(lark, schemas, has_one_call=has_one_call)
            said = self.harmony.final(lark, "/(?s:.*)/")
            start = f"{self.harmony.analysis(lark)} ({said} | {self.harmony.preamble(lark)} {calls})"
            return GrammarSpec("lark", lark.grammar(start), "tools")
        if not self.syntax.openers:
            return None
        calls = self.syntax.rules(lark, schemas, has_one_call=has_one_call)
        said = lark.without(self.syntax.openers)
        start = turn = f"{said} ({calls})?"
        # Reasoning between tags that are written in letters is text like any other.
        if self.thinking is not None and self.thinking.end in self.special and reasoning is not Reasoning.OVER:
            thought = f"{said} ({lark.text(self.thinking.end)} {turn})?"
            begun = f"{lark.text(self.thinking.begin)} {thought}"
            start = thought if reasoning is Reasoning.BEGUN else f"({begun} | {turn})"
        return GrammarSpec("lark", lark.grammar(start), "tools")

    def _before(self, lark: Lark, reasoning: Reasoning) -> str:
        """What may come, or has to, before anything that is no reasoning."""
        if self.harmony is not None:
            return self.harmony.analysis(lark)
        if self.thinking is None or reasoning is Reasoning.OVER:
            return ""
        rest = f"{lark.until(self.thinking.end)} /\\n{{0,2}}/"
        return rest if reasoning is Reasoning.BEGUN else f"({lark.text(self.thinking.begin)} {rest})?"

    def _silent(self, *, has_tools: bool) -> Sequence[str]:
        """Special tokens within what turns are read by."""
        markers: list[str] = []
        if self.harmony is not None:
            markers += self.harmony.markers
        if self.thinking is not None:
            markers += (self.thinking.begin, self.thinking.end)
        if has_tools:
            markers += self.syntax.markers
        return [text for text in self.special if any(text in marker for marker in markers)]


def _syntax(text: str) -> CallSyntax | None:
    return next((each.syntax for each in CALL_FORMATS if all(sign in text for sign in each.signs)), None)


def _thinks(thinking: Thinking, traits: ChatTraits) -> bool:
    tags = {thinking.begin, thinking.end}
    return any(tag in traits.template for tag in tags) or tags <= traits.markers
