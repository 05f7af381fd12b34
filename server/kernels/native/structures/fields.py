"""Structures of ctypes whose fields have types for type checkers, too."""

from __future__ import annotations

from ctypes import Structure
from types import new_class
from typing import TYPE_CHECKING, Any, TypeVar, cast, dataclass_transform

S = TypeVar("S", bound=Structure)

if TYPE_CHECKING:

    class Address:
        """The type of a field of ``c_void_p``; None stands for no address."""

        def __get__(self, instance: object, owner: object = None) -> int: ...
        def __set__(self, instance: object, value: int | None) -> None: ...
else:
    Address = int


def field(c_type: Any) -> Any:
    """Declare a field of a ``structure``."""
    return c_type


@dataclass_transform(eq_default=False)
def structure(declared: type[S]) -> type[S]:
    """Make a structure of a class whose attributes are fields; it has no others, and zeros where nothing is given."""
    names = {"__module__": declared.__module__, "__qualname__": declared.__qualname__, "__slots__": ()}
    fields = [(name, vars(declared)[name]) for name in declared.__annotations__]
    made = new_class(declared.__name__, declared.__bases__, {}, lambda body: body.update(names, _fields_=fields))
    return cast("type[S]", made)
