"""Grammars of structured output by llguidance: which tokens may come next. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

from .request import GrammarSpec, RequestRefusedError

MAX_MESSAGE = 200  # characters of what llguidance says
# A step's share of these is spent on the engine's thread: at most about 20 ms.
LIMITS = llguidance.LLParserLimits(max_items_in_row=10_000, max_lexer_states=20_000, verbose_errors=False)

# Numbers and white space are bounded, so that a model that likes digits or blanks comes to an end.
JSON_OBJECT = r"""
%llguidance {"ignore_once": true}
%ignore / |\n[ \t]{0,16}/
start: object
object: "{" (member ("," member)*)? "}"
member: STRING ":" value
array: "[" (value ("," value)*)? "]"
value: object | array | STRING | NUMBER | "true" | "false" | "null"
STRING: /"(\\(["\\\/bfnrt]|u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))|[^"\\\x00-\x1F\x7F])*"/
NUMBER: /-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?/
"""


class GrammarCompiler:
    """Compiles grammars over the tokens of one model; from any thread.

    Args:
        tokens: the bytes of each token; none where an id is no token.
        special_token_ids: tokens that stand for no text; a grammar allows them by name alone.
        eos_token_ids: tokens that end a sequence, allowed where the grammar may end.
    """

    def __init__(self, tokens: Sequence[bytes], special_token_ids: frozenset[int], eos_token_ids: frozenset[int]):
        ends = sorted(token_id for token_id in eos_token_ids if token_id < len(tokens))
        vocabulary = _Vocabulary(list(tokens), sorted(special_token_ids.union(ends)), ends[0] if ends else None)
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=ends or None)
        self._ends = np.array(ends, np.int64)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a grammar, and try its first step.

        Raises:
            RequestRefusedError: it can't be compiled, or allows no text at all.
        """
        matcher = llguidance.LLMatcher(self._tokenizer, _lark(spec), log_level=0, limits=LIMITS)
        grammar = CompiledGrammar(spec, matcher, self._tokenizer.vocab_size, self._ends)
        if matcher.is_error():
            raise RequestRefusedError(f"'{spec.param}' can't be followed: {_reason(matcher)}", spec.param)
        first = grammar.matcher()
        if not first.allowed().any():
            raise RequestRefusedError(f"'{spec.param}' can't be followed: no text satisfies it", spec.param)
        return grammar


@dataclass(frozen=True)
class CompiledGrammar:
    """A ``Grammar``; what its matchers learn of its lexer they share."""

    spec: GrammarSpec
    _origin: llguidance.LLMatcher
    _num_tokens: int
    _ends: npt.NDArray[np.int64]

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self.spec, self._origin.deep_copy(), self._num_tokens, self._ends)


class GrammarMatcher:
    """The place in a grammar that one sequence has come to."""

    def __init__(self, spec: GrammarSpec, matcher: llguidance.LLMatcher, num_tokens: int, ends: npt.NDArray[np.int64]):
        self._spec, self._matcher, self._ends = spec, matcher, ends
        self._bits = np.zeros((num_tokens + 31) // 32, np.uint32)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Of each token, whether it may come next ``(tokens,)``; none may after an error."""
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self._bits[:] = 0
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little").view(np.bool_)

    def may_go_on(self, allowed: npt.NDArray[np.bool_]) -> bool:
        """Whether something else than the end may come next."""
        return int(allowed.sum()) > int(allowed[self._ends].sum())

    def accept(self, token_id: int) -> None:
        """Go on with a token."""
        self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> RequestRefusedError | None:
        """Why it can't be followed any further."""
        if not self._matcher.is_error():
            return None
        param = self._spec.param
        return RequestRefusedError(f"'{param}' became too complex to follow: simplify its patterns", param)


class _Vocabulary:
    """Tokens in the form that ``TokenizerWrapper`` takes."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int | None):
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_token_ids, eos_token_id

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("grammars with no_forcing tokenise nothing")


def _lark(spec: GrammarSpec) -> str:
    """The grammar in Lark. Which tokens spell a forced text is the model's choice: no tokenizer is needed for it."""
    body = {"json_object": JSON_OBJECT, "json_schema": f"start: %json {spec.text}", "lark": spec.text}[spec.kind]
    return f'%llguidance {{"no_forcing": true}}\n{body}'


def _reason(matcher: llguidance.LLMatcher) -> str:
    """What llguidance says, in one line without the grammar it quotes."""
    text = re.split(r"\n +\d+ \| ", matcher.get_error())[0].removesuffix("<non-verbose/>")
    _, found, reason = text.partition("failed to compile JSON schema: ")
    line = " ".join((reason if found else text).split()).rstrip(".;")
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "..."
