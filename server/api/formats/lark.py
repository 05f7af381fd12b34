"""Grammars that a turn has to follow, in llguidance's dialect of Lark."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from server.api.formats.values import encode, is_text
from server.api.json_schema import schema_text


class Lark:
    """Collects the rules of a grammar; what it returns is put together to the bodies of rules.

    Args:
        special: texts that can't be written but as one token, and its id.

    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._pattern = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + r"|^\n)")
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """A text as it stands.

        A line break before it is a lexeme of its own: it may be where something else may go on with a line break, too,
        and llguidance's lexer takes the longest lexeme that begins as the text does.
        """
        parts = [part for part in self._pattern.split(text) if part]
        return " ".join(f"<[{self._special[part]}]>" if part in self._special else encode(part) for part in parts)

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON of a schema."""
        return self._rule(f"%json {schema_text(schema)}")

    def until(self, end: str) -> str:
        """Any text up to the first of another, which belongs to it."""
        if end in self._special:
            return f"/(?s:.*)/ {self.text(end)}"
        pattern = re.escape(end).replace("\n", "n").replace("/", r"\/")  # it escapes line breaks by a backslash, too
        return self._rule(f"/(?s:.*){pattern}/", "[lazy]")

    def without(self, marks: Sequence[str]) -> str:
        """Any text without some marks, behind which one of them may follow; empty perhaps.

        llguidance's lexer takes the longest lexeme, so a new one begins wherever a mark may.
        """
        begins = [self._pattern.split(mark)[0] for mark in marks]  # up to what can't be written in letters
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
    """The parameters of a tool: their names, their schemas, and whether they must be given."""
    properties, required = schema.get("properties"), schema.get("required")
    for name, each in properties.items() if isinstance(properties, dict) else ():
        own = each if isinstance(each, dict) else {}
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        yield name, own | shared, isinstance(required, list) and name in required


def parameter(lark: Lark, schema: Mapping[str, Any], end: str) -> str:
    """A parameter's value and what ends it: text as it is, everything else as JSON."""
    if not is_text(schema):
        return f"{lark.json(schema)} {lark.text(end)}"
    options = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if options and all(isinstance(option, str) for option in options):
        return lark.either(lark.text(f"{option}{end}") for option in options)
    return lark.until(end)


def optional(body: str, is_required: bool) -> str:
    return f"({body})" if is_required else f"({body})?"


def sequence(call: str, separator: str, *, has_one_call: bool) -> str:
    """One call, or as many as the model likes."""
    return call if has_one_call else f"{call} ({separator} {call})*"


def keyword_rules(
    lark: Lark,
    schema: Mapping[str, Any],
    assignment: str,
    separator: str,
    value: Callable[[Lark, Mapping[str, Any]], str],
) -> str:
    """Arguments by their names, with something between name and value, and between one argument and the next.

    Those that must be given come first.
    """
    required: list[str] = []
    others: list[str] = []
    for name, each, is_required in parameters_of(schema):
        body = f"{lark.text(name + assignment)} {value(lark, each)}"
        (required if is_required else others).append(body)
    comma = lark.text(separator)
    if required:
        return f" {comma} ".join(required) + "".join(f" ({comma} {body})?" for body in others)
    # Without one that is certain, each of the others may be the first.
    starts = [body + "".join(f" ({comma} {later})?" for later in others[n + 1 :]) for n, body in enumerate(others)]
    return f"({' | '.join(starts)})?" if starts else ""
