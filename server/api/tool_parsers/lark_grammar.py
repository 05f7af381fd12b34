"""Builds the grammar of a turn in llguidance's dialect of Lark."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from server.api.core.grammars.json_schema import schema_text
from server.api.tool_parsers.argument_values import encode, is_text


class LarkGrammar:
    """Collects the rules of a grammar; its methods return expressions for the bodies of rules.

    Args:
        special: special tokens, whose text can be written only as one token, and their ids.

    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + r"|^\n)")
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """Return an expression for a literal text.

        A leading line break is a lexeme of its own: another lexeme that is possible there may also begin with a line
        break, and llguidance's lexer takes the longest lexeme that matches.
        """
        parts = [part for part in self._pattern.split(text) if part]
        return " ".join(f"<[{self._special[part]}]>" if part in self._special else encode(part) for part in parts)

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for JSON that follows a schema."""
        return self._rule(f"%json {schema_text(schema)}")

    def nested(self, grammar: str) -> str:
        """Return an expression for text that follows another grammar."""
        return self._rule(f"%lark {{\n{grammar}\n}}")

    def until(self, end: str) -> str:
        """Return an expression for any text up to and including the first ``end``."""
        if end in self._special:
            return f"/(?s:.*)/ {self.text(end)}"
        pattern = (
            re.escape(end).replace("\n", "n").replace("/", r"\/")
        )  # re.escape puts a backslash before a line break
        return self._rule(f"/(?s:.*){pattern}/", "[lazy]")

    def without(self, marks: Sequence[str]) -> str:
        """Return an expression for any text, also an empty one, that contains none of ``marks``; one may follow it.

        llguidance's lexer takes the longest lexeme, so a new lexeme begins wherever a mark may begin.
        """
        begins = [self._pattern.split(mark)[0] for mark in marks]  # the part before the first special token
        first = "".join(sorted({re.escape(begin[0]) for begin in begins if begin}))
        if not first:
            return "/(?s:.*)/"
        taken = [
            re.escape(begin) + ("(?s:.*)" if begin == mark else "") for begin, mark in zip(begins, marks, strict=True)
        ]
        pattern = "|".join(each for each in taken if each).replace("/", r"\/")
        other = self._rule(f"/[{first}][^{first}]*/ & ~/({pattern})/", kind="T")
        return f"(/[^{first}]+/ | {other})*"

    def either(self, bodies: Iterator[str]) -> str:
        return self._rule(" | ".join(self._rule(body) for body in bodies))

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])

    def _rule(self, body: str, options: str = "", kind: str = "r") -> str:
        name = f"{kind}{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name


def parameters_of(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield the name and the schema of each parameter, and True if it is required."""
    properties, required = schema.get("properties"), schema.get("required")
    for name, each in properties.items() if isinstance(properties, dict) else ():
        own = each if isinstance(each, dict) else {}
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        yield name, own | shared, isinstance(required, list) and name in required


def parameter(lark: LarkGrammar, schema: Mapping[str, Any], end: str) -> str:
    """Return an expression for a parameter's value and its end: plain text for strings, JSON for other types."""
    if not is_text(schema):
        return f"{lark.json(schema)} {lark.text(end)}"
    options = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if options and all(isinstance(option, str) for option in options):
        return lark.either(lark.text(f"{option}{end}") for option in options)
    return lark.until(end)


def optional(body: str, is_required: bool) -> str:
    return f"({body})" if is_required else f"({body})?"


def sequence(call: str, separator: str, *, has_one_call: bool) -> str:
    """Return an expression for one call, or for any number of calls."""
    return call if has_one_call else f"{call} ({separator} {call})*"


def keyword_rules(
    lark: LarkGrammar,
    schema: Mapping[str, Any],
    assignment: str,
    separator: str,
    value: Callable[[LarkGrammar, Mapping[str, Any]], str],
) -> str:
    """Return an expression for keyword arguments, the required ones first.

    Args:
        assignment: text between a name and its value.
        separator: text between two arguments.
        value: makes the expression for a value of a schema.

    """
    required: list[str] = []
    others: list[str] = []
    for name, each, is_required in parameters_of(schema):
        body = f"{lark.text(name + assignment)} {value(lark, each)}"
        (required if is_required else others).append(body)
    comma = lark.text(separator)
    if required:
        return f" {comma} ".join(required) + "".join(f" ({comma} {body})?" for body in others)
    # Without required arguments, any of the others may be the first.
    starts = [body + "".join(f" ({comma} {later})?" for later in others[n + 1 :]) for n, body in enumerate(others)]
    return f"({' | '.join(starts)})?" if starts else ""
