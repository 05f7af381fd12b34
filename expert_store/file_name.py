"""FileName: the name of a file inside a model, which can't lead out of the model's folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Self

from expert_store.checked_text import CheckedText, shown
from expert_store.errors import FileNameError

MAX_BYTES, MAX_PART_BYTES = 1024, 255
DRIVE = re.compile(r"[A-Za-z]:")
UNPRINTABLE = ("C", "Zl", "Zp")  # begin Unicode's categories of control characters, halves of pairs, ends of lines


class FileName(CheckedText):
    """A relative path with slashes, by which a file or a folder inside a model is found.

    Whatever comes from outside (an index, a list of files, a manifest, an answer of a server, a file of a cache) is
    made a ``FileName`` before a path or an address is made of it.

    Raises:
        FileNameError: the name could lead elsewhere, or is of no use in logs.
    """

    __slots__ = ()

    @classmethod
    def check(cls, text: object) -> None:
        """Raise FileNameError if a name breaks a rule."""
        reason = _reason(text)
        if reason:
            raise FileNameError(f"{shown(text)} is not the name of a file inside a model: {reason}")

    @classmethod
    def valid(cls, names: Iterable[str]) -> list[Self]:
        """Return those names that are ones of files inside a model, and leave others out."""
        return [cls(name) for name in names if not _reason(name)]

    @property
    def folder(self) -> str:
        """The path of its folder; empty if it is in the model's own one."""
        return self.rpartition("/")[0]

    @property
    def last(self) -> FileName:
        """The name without its folder."""
        return FileName(self.rpartition("/")[2])


def _reason(name: object) -> str:
    """Return why a name is refused; empty if it is not."""
    if not isinstance(name, str):
        return "it is not a text"
    if any(unicodedata.category(character).startswith(UNPRINTABLE) for character in name):
        return "it has characters that can't be printed"
    if "\\" in name:
        return "it has a backslash"
    if len(name.encode()) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return next(filter(None, map(_reason_of_part, name.split("/"))), "")


def _reason_of_part(part: str) -> str:
    if part in {"", ".", ".."}:
        return f"a part of it is {part!r}"
    if DRIVE.match(part):
        return f"a part of it begins with the drive {part[:2]!r}"
    return f"a part of it is longer than {MAX_PART_BYTES} bytes" if len(part.encode()) > MAX_PART_BYTES else ""
