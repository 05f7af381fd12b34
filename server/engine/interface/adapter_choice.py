"""Choices of adapters: by examples of prompts, or for each token. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from server.engine.interface.errors import RequestRefusedError

MAX_EXAMPLES = 64
MAX_CHARACTERS = 4096  # of a description or an example


@dataclass(frozen=True)
class AdapterExamples:
    """A description of the prompts that weights are meant for, and examples of them."""

    description: str | None = None
    examples: tuple[str, ...] = ()

    @classmethod
    def checked(cls, description: str | None, examples: Sequence[str] | None) -> Self:
        """Check texts from outside.

        Raises:
            RequestRefusedError: there are too many, or one is empty, too long or not valid Unicode.
        """
        if description is not None:
            _check(description, "description")
        if examples is not None and len(examples) > MAX_EXAMPLES:
            raise RequestRefusedError(
                f"'examples' must hold at most {MAX_EXAMPLES} prompts, but holds {len(examples)}", "examples"
            )
        for index, example in enumerate(examples or ()):
            _check(example, f"examples[{index}]")
        return cls(description, tuple(examples or ()))

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that a prompt is compared with."""
        return ((self.description,) if self.description else ()) + self.examples


@dataclass(frozen=True)
class ChoiceByToken:
    """A choice of adapters for each token at each layer.

    Args:
        adapters: names of those to choose from; None for all that can be chosen so.
        top_k: the most that a token has at a layer.
        temperature: divides scores before the softmax.
        gate: name of the mixture whose trained gate chooses; None for Arrow.
    """

    adapters: tuple[str, ...] | None = None
    top_k: int = 3
    temperature: float = 1.0
    gate: str | None = None


@dataclass(frozen=True)
class AdapterCandidate:
    """Weights that a router may choose.

    Args:
        name: under which they are served.
        version: a number that only these weights under this name have.
        texts: at least one.
    """

    name: str
    version: int
    texts: tuple[str, ...]


def _check(text: str, field: str) -> None:
    if not text.strip():
        raise RequestRefusedError(f"'{field}' must not be empty; write a text or leave it out", field)
    if len(text) > MAX_CHARACTERS:
        raise RequestRefusedError(
            f"'{field}' must have at most {MAX_CHARACTERS} characters, but has {len(text)}", field
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestRefusedError(f"'{field}' must be valid Unicode, without half a surrogate pair", field) from error
