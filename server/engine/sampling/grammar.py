"""Grammars of structured output, with llguidance: the tokens that may come next. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import llguidance
import numpy as np
import numpy.typing as npt

from server.engine.interface import GrammarSpec, RequestRefusedError
from server.engine.sampling.json_grammar import json_object
from server.engine.sampling.json_keys import JsonKeys
from server.engine.sampling.key_tokens import KeyTokens
from server.engine.sampling.lexer_sizes import GrowingSize, always

MAX_TOKEN_BYTES = 1000  # maximum depth of llguidance's token tree
MAX_MESSAGE = 200  # characters of an llguidance error
MAX_DIGITS = 20  # in a row, if a grammar does not bound the digits of a number
NO_EXTENSION = "NoExtensionBias"  # llguidance's error for a text that no token continues


class GrammarCompiler:
    """Compiles grammars over the tokens of one model. Thread-safe.

    Args:
        tokens: the bytes of each token; empty for an id that is no token.
        special_token_ids: tokens that are not text; a grammar allows them only by name.
        eos_token_ids: tokens that end a sequence; allowed where the grammar may end.
    """

    def __init__(self, tokens: Sequence[bytes], special_token_ids: frozenset[int], eos_token_ids: frozenset[int]):
        self._tokens = GrammarTokens(tokens, special_token_ids, eos_token_ids)

    def compile(self, spec: GrammarSpec, hold: Callable[[int], bool] = always) -> CompiledGrammar:
        """Compile a grammar and compute its first mask.

        Args:
            hold: takes so many bytes for as long as the grammar exists, if its lexer becomes large; False without them.

        Raises:
            RequestRefusedError: it can't be compiled, or allows no text.
        """
        grammar = CompiledGrammar(spec, self._tokens, hold)
        if not grammar.matcher().allowed().any():
            reason = "no text of this model's tokens satisfies it"
            raise RequestRefusedError(f"'{spec.param}' can't be followed: {reason}", spec.param)
        return grammar


class GrammarTokens:
    """A model's tokens in llguidance's form, and masks of tokens with common properties."""

    def __init__(self, tokens: Sequence[bytes], special_token_ids: frozenset[int], eos_token_ids: frozenset[int]):
        ends = sorted(token_id for token_id in eos_token_ids if token_id < len(tokens))
        silent = special_token_ids.union(ends)
        usable = [token if len(token) <= MAX_TOKEN_BYTES else b"" for token in tokens]
        vocabulary = _Vocabulary(usable, sorted(silent), ends[0] if ends else None)
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=ends or None)
        self.text = [b"" if token_id in silent else token for token_id, token in enumerate(usable)]
        self.begin_with_digit = self._those(lambda token: token[:1].isdigit())
        self.begin_with_quote = self._those(lambda token: token.startswith(b'"'))
        self.keys = KeyTokens(self.text)
        self.are_ends = np.zeros(self.tokenizer.vocab_size, np.bool_)
        self.are_ends[ends] = True

    def _those(self, has: Callable[[bytes], bool]) -> npt.NDArray[np.bool_]:
        """Return a mask of the tokens that have a property, ``(tokens,)``."""
        flags = np.zeros(self.tokenizer.vocab_size, np.bool_)
        flags[: len(self.text)] = [has(token) for token in self.text]
        return flags


class CompiledGrammar:
    """A ``Grammar``. Its matchers share a lexer, whose cache of states grows with every text up to a limit.

    Raises:
        RequestRefusedError: it can't be compiled.
    """

    def __init__(self, spec: GrammarSpec, tokens: GrammarTokens, hold: Callable[[int], bool]):
        self.spec, self.tokens, self._size = spec, tokens, GrowingSize(hold)
        self.origin = self._compile()
        while self.origin.is_error() and self._size.grow():
            self.origin = self._compile()
        if self.origin.is_error():
            reason = _reason(self.origin.get_error())
            raise RequestRefusedError(f"'{spec.param}' can't be followed: {reason}", spec.param)

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self)

    def renew(self, spent: llguidance.LLMatcher) -> bool:
        """Use a new lexer for all matchers, unless one of them has renewed it already; True if it is larger."""
        if self.origin is not spent:
            return False
        is_larger = self._size.grow()
        self.origin = self._compile()
        return is_larger

    def _compile(self) -> llguidance.LLMatcher:
        text = _lark(self.spec)
        limits = self._size.current.limits(len(text))
        return llguidance.LLMatcher(self.tokens.tokenizer, text, log_level=0, limits=limits)


class GrammarMatcher:
    """Position of one sequence in a grammar."""

    def __init__(self, grammar: CompiledGrammar):
        self._grammar, self._tokens = grammar, grammar.tokens
        self._accepted: list[int] = []
        self._num_digits = 0  # digits at the end of the text
        self._keys = JsonKeys()
        self._bits = np.zeros((self._tokens.tokenizer.vocab_size + 31) // 32, np.uint32)
        self._begin()

    def _begin(self) -> None:
        self._origin = self._grammar.origin
        self._matcher = self._origin.deep_copy()
        self._matcher.consume_tokens(self._accepted)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the tokens that may come next, ``(tokens,)``; after an error it is all False."""
        if self._origin is not self._grammar.origin and not self._matcher.is_error():
            self._begin()  # nobody keeps a lexer that was renewed
        self._compute()
        is_alone = False  # with the lexer, which other sequences may have filled
        while self._is_spent():
            is_larger = self._grammar.renew(self._origin)
            if is_alone and not is_larger:
                break
            self._begin()
            self._compute()
            is_alone = True
        if self._matcher.is_error():
            self._bits[:] = 0
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        allowed = self._without_repeated_keys(bits[: self._tokens.tokenizer.vocab_size].view(np.bool_))
        return self._without_digits(allowed) if self._num_digits >= MAX_DIGITS else allowed

    def _is_spent(self) -> bool:
        return self._matcher.is_error() and NO_EXTENSION not in self._matcher.get_error()

    def _compute(self) -> None:
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)

    def may_go_on(self, allowed: npt.NDArray[np.bool_]) -> bool:
        """Return whether a token other than an end token may come next."""
        return bool((allowed & ~self._tokens.are_ends).any())

    def accept(self, token_id: int) -> None:
        """Advance by a token."""
        self._matcher.consume_token(token_id)
        self._accepted.append(token_id)
        text = self._tokens.text[token_id] if token_id < len(self._tokens.text) else b""
        self._keys.push(text)
        rest = text.rstrip(b"0123456789")
        self._num_digits = len(text) - len(rest) + (0 if rest else self._num_digits)

    @property
    def is_complete(self) -> bool:
        """True if no token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> RequestRefusedError | None:
        """Error because of which it can't be followed any further."""
        if not self._matcher.is_error():
            return None
        param, reason = self._grammar.spec.param, "became too complex to follow: simplify its patterns"
        if NO_EXTENSION in self._matcher.get_error():
            reason = "can't be followed: no token of this model continues the text so far"
        return RequestRefusedError(f"'{param}' {reason}", param)

    def _without_repeated_keys(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Remove tokens that would write a key of an object twice, if the text may continue otherwise."""
        if not self._grammar.spec.has_unique_keys:
            return allowed
        repeating = self._tokens.keys.repeating(self._keys, allowed)
        if not repeating.size:
            return allowed
        others = allowed.copy()
        others[repeating] = False
        return others if others.any() else allowed

    def _without_digits(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Remove tokens that begin with a digit, if the text is in a number and may continue otherwise."""
        if (allowed & self._tokens.begin_with_quote).any():  # the text is in a string
            return allowed
        others = allowed & ~self._tokens.begin_with_digit
        return others if others.any() else allowed


class _Vocabulary:
    """Tokens in the form that ``TokenizerWrapper`` expects."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int | None):
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_token_ids, eos_token_id

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("grammars with no_forcing never tokenise text")


def _lark(spec: GrammarSpec) -> str:
    """Return the grammar in Lark. The model chooses the tokens of a forced text, so no tokenizer is needed."""
    schema = f"start: %json {spec.text}"
    body = {"json_object": json_object(), "json_schema": schema, "lark": spec.text, "own": spec.text}[spec.kind]
    return f'%llguidance {{"no_forcing": true}}\n{body}'


def _reason(error: str) -> str:
    """Return llguidance's error as one line, without the grammar that it quotes."""
    text = re.split(r"\n +\d+ \| ", error)[0].removesuffix("<non-verbose/>")
    _, found, reason = text.partition("failed to compile JSON schema: ")
    line = " ".join((reason if found else text).split()).rstrip(".;")
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "..."
