"""Texts that a grammar allows as a whole, in a vocabulary of bytes."""

from server.engine.interface import GrammarSpec
from server.engine.sampling.grammar import GrammarCompiler

END = 256


def byte_compiler() -> GrammarCompiler:
    return GrammarCompiler([*(bytes([byte]) for byte in range(256)), b"<end>"], frozenset({END}), frozenset({END}))


def allows(compiler: GrammarCompiler, spec: GrammarSpec, text: str) -> bool:
    """Return True if a grammar allows a text as a whole."""
    matcher = compiler.compile(spec).matcher()
    for byte in text.encode():
        if not matcher.allowed()[byte]:
            return False
        matcher.accept(byte)
    return matcher.is_complete or bool(matcher.allowed()[END])
