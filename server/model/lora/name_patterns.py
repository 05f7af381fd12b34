"""Matches names of modules with the patterns of an adapter's configuration, in time that its author does not choose."""

from __future__ import annotations

import re
from collections.abc import Iterable

import llguidance

MAX_PATTERN = 4096  # characters
MAX_EXPRESSIONS = 256  # patterns that are more than a name: each is tried on each name
PLAIN = re.compile(r"(\^?)((?:[\w-]|\\?\.)+)\$?", re.ASCII)  # a name, or its end
ESCAPED = re.compile(r"\\.|\[[^\]]*\]", re.DOTALL)
INNERMOST = re.compile(r"\([^()]*\)")

# A matcher takes about 15 ms at most for a name, and 10 us for usual ones.
LIMITS = llguidance.LLParserLimits(
    max_lexer_states=2_000, initial_lexer_fuel=100_000, step_lexer_fuel=50_000, verbose_errors=False
)


class NamePatterns:
    r"""Finds the first pattern that matches a name, as ``peft.utils.other.get_pattern_key`` does.

    PEFT matches ``(.*\.)?(pattern)$`` with Python's engine, whose time may double with each character. Here, patterns
    that are plain names are looked up, and others are matched by llguidance's engine, which does not backtrack and has
    limits. A dot of a plain name is a dot. Not safe for use by several threads at once.

    Raises:
        ValueError: a pattern can't be matched so; the message continues "... has the pattern ...,".
    """

    def __init__(self, patterns: Iterable[str]):
        self._ends: dict[str, tuple[int, str]] = {}  # plain names by what a name must end with
        self._names: dict[str, tuple[int, str]] = {}  # plain names that must be the whole
        self._expressions: list[tuple[int, str, _Expression]] = []
        for order, pattern in enumerate(patterns):
            if plain := PLAIN.fullmatch(pattern):
                places = self._names if plain[1] else self._ends
                places.setdefault(plain[2].replace("\\", ""), (order, pattern))
            elif len(self._expressions) == MAX_EXPRESSIONS:
                raise ValueError(
                    f"{pattern!r}, but at most {MAX_EXPRESSIONS} may be regular expressions; write names of modules"
                )
            else:
                self._expressions.append((order, pattern, _Expression(pattern)))

    def find(self, name: str) -> str | None:
        """Return the first pattern that matches, or None.

        Raises:
            ValueError: a pattern is too complex for its limits.
        """
        parts = name.split(".")
        ends = (self._ends.get(".".join(parts[begin:])) for begin in range(len(parts)))
        plain = min((found for found in (self._names.get(name), *ends) if found), default=None)
        for order, pattern, expression in self._expressions:
            if plain is not None and plain[0] < order:
                break
            if expression.matches(name):
                return pattern
        return None if plain is None else plain[1]


class _Expression:
    """A regular expression that the end of a name must match."""

    tokens = llguidance.LLTokenizer("byte")

    def __init__(self, pattern: str):
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"{pattern[:40]!r}..., which is longer than {MAX_PATTERN} characters")
        self._pattern = pattern
        is_whole = pattern.startswith("^") and not _has_alternatives(pattern)
        text = f"(?s:{pattern[1:]})" if is_whole else rf"(?s:.*\.)?(?:{pattern})"
        grammar = llguidance.LLMatcher.grammar_from_regex(text)
        self._matcher = llguidance.LLMatcher(self.tokens, grammar, log_level=0, limits=LIMITS)
        if self._matcher.is_error():
            raise ValueError(
                f"{pattern!r}, which is no regular expression that is served (look-around, references and anchors in "
                "the middle are not); write names of modules"
            )

    def matches(self, name: str) -> bool:
        tokens = list(name.encode())
        num_taken = self._matcher.try_consume_tokens(tokens)
        is_match = num_taken == len(tokens) and self._matcher.is_accepting()
        if self._matcher.is_error() or not self._matcher.rollback(num_taken):
            raise ValueError(f"{self._pattern!r}, which is too complex to match; write names of modules")
        return is_match


def _has_alternatives(pattern: str) -> bool:
    """Return True if there is a ``|`` outside of all groups, since an anchor belongs to one alternative only."""
    left, shorter = pattern, ESCAPED.sub("", pattern)
    while shorter != left:
        left, shorter = shorter, INNERMOST.sub("", shorter)
    return "|" in left
