"""A line of the tables: what another server has, and what stands for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

SAME, NOT_NEEDED, ABSENT = "the same", "not needed", "absent"

_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_VARIABLE = re.compile(r"(?<![\w-])[A-Z]+_[A-Z_]+(?![\w*])")
_PATH = re.compile(r"(?<!\S)/[a-z][\w/-]*")
_COMMAND = re.compile(r"^(?:ollama|vllm) ([a-z-]+)")


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Args:
        theirs: flags, variables, commands or routes of the other server, in Markdown.
        ours: what to use instead, in Markdown, or one of ``SAME``, ``NOT_NEEDED`` and ``ABSENT``.
        remark: why, or what else differs.
    """

    theirs: str
    ours: str
    remark: str = ""

    @property
    def names(self) -> list[str]:
        """The flags and variables of the other server."""
        code = " ".join(self._code)
        return _FLAG.findall(code) + _VARIABLE.findall(code)

    @property
    def paths(self) -> list[str]:
        """The paths of its routes."""
        return _PATH.findall(" ".join(self._code))

    @property
    def commands(self) -> list[str]:
        """Its commands, without the name of its program."""
        return [found[1] for code in self._code if (found := _COMMAND.match(code))]

    def explain(self, name: str, server: str) -> str:
        """Say in one sentence what stands for a flag, variable, command or route of the other server."""
        kind = "flag" if name.startswith("-") else "route" if name.startswith("/") else "variable"
        kind = "command" if name in self.commands else kind
        ours = f"here it is {self.ours}" if self.ours not in (NOT_NEEDED, ABSENT) else f"it is {self.ours} here"
        return _plain(f"{name} is a {kind} of {server}; {ours}{': ' if self.remark else ''}{self.remark}")

    @property
    def _code(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.theirs)


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", markdown).replace("`", "")
