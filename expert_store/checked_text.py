"""CheckedText: texts that follow rules, as a type that no other text passes for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

SHOWN_CHARACTERS = 200  # of a text that is refused, in an error


class CheckedText(str):
    """A text that follows the rules of its class, which are checked when it is made.

    Where a parameter has such a type, mypy refuses a plain ``str``. pydantic makes such texts from JSON.

    Raises:
        ValueError: the text breaks a rule, or is no text.
    """

    __slots__ = ()

    def __new__(cls, text: object) -> Self:
        if not isinstance(text, cls):
            cls.check(text)
        return super().__new__(cls, text)

    @classmethod
    def check(cls, text: object) -> None:
        """Raise ValueError if a text breaks a rule."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        from pydantic_core import core_schema  # noqa: PLC0415  modules that only name files don't need it

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def shown(text: object) -> str:
    """Return what an error shows of a text that is refused."""
    return repr(text if len(str(text)) <= SHOWN_CHARACTERS else str(text)[:SHOWN_CHARACTERS] + "...")
