"""Memory of grammars, against what is counted for them."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest

from server.api.core.grammars.compiler import GRAMMAR_BYTES, TEXT_FACTOR
from server.engine.interface import GrammarSpec, RequestRefusedError
from server.engine.sampling.grammar import GrammarCompiler, GrammarMatcher
from server.engine.sampling.lexer_sizes import SIZES

END = 256
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STATES = "start: /(.*a.{24}b.*|.*c.{25}d.*|.*[e-k].{31}z.*)/"  # each text needs states of its own
FUEL = "start: /(" + "|".join(f".*{letter}.{{{10 + place}}}é.*" for place, letter in enumerate(LETTERS)) + ")/"


class _Allocations(ctypes.Structure):
    """The ``struct mallinfo2`` of glibc."""

    _fields_ = tuple((f"field_{number}", ctypes.c_size_t) for number in range(10))

    @property
    def used_bytes(self) -> int:
        """``uordblks`` and ``hblkhd``: in the heap, and mapped."""
        return int(self.field_7 + self.field_4)


def allocated_bytes() -> int:
    """Return the bytes that this thread has allocated, beside Python's small objects."""
    query = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if query is None:
        pytest.skip("glibc has no mallinfo2 here")
    query.restype = _Allocations
    gc.collect()
    return int(query().used_bytes)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({END}), frozenset({END}))


def follow(matcher: GrammarMatcher, num_tokens: int = 2000) -> int:
    """Follow letters in an order that does not repeat; return how many the grammar let come."""
    state = 1
    for number in range(num_tokens):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        token = ord(LETTERS[(state >> 16) % 26])
        if not matcher.allowed()[token]:
            return number
        matcher.accept(token)
    return num_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "num_sizes"),
    [(STATES, 0), (STATES, 1), (STATES, len(SIZES) - 1), (FUEL, len(SIZES) - 1)],
    ids=["states-none", "states-some", "states-all", "fuel-all"],
)
def test_a_grammar_takes_no_more_memory_than_it_holds(compiler: GrammarCompiler, text: str, num_sizes: int) -> None:
    held = [GRAMMAR_BYTES + TEXT_FACTOR * len(text)]

    def hold(nbytes: int) -> bool:
        if len(held) > num_sizes:
            return False
        held.append(nbytes)
        return True

    before = allocated_bytes()
    try:
        grammar = compiler.compile(GrammarSpec("lark", text), hold)
    except RequestRefusedError:  # its lexer needs more work than this size allows
        assert num_sizes == 0
        return
    follow(grammar.matcher())
    assert len(held) == num_sizes + 1 or text is FUEL
    assert allocated_bytes() - before <= sum(held)


def granting(nbytes: int) -> bool:
    return bool(nbytes)


def refusing(nbytes: int) -> bool:
    return not nbytes


def test_a_text_gets_further_with_more_memory(compiler: GrammarCompiler) -> None:
    def length(hold: Callable[[int], bool]) -> int:
        return follow(compiler.compile(GrammarSpec("lark", STATES), hold).matcher())

    assert length(refusing) < length(granting)


def test_a_full_lexer_is_left_by_all_who_follow_the_grammar(compiler: GrammarCompiler) -> None:
    """Otherwise each of them would keep a lexer of its own, of which one is counted."""
    grammar = compiler.compile(GrammarSpec("lark", STATES), granting)
    first, second = grammar.matcher(), grammar.matcher()
    second.allowed()
    full = grammar.origin
    follow(first, 200)
    assert grammar.origin is not full
    second.allowed()
    assert second._origin is grammar.origin
