"""Completion of the chat's input: commands, and the names of models and adapters after theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

Names = Callable[[], Iterable[str]]


class CommandCompleter(Completer):
    """Completes the first words of the input.

    Args:
        commands: the names of the commands.
        arguments: by beginning of the input, a function that returns what may follow.
    """

    def __init__(self, commands: Iterable[str], arguments: Mapping[str, Names]):
        self._commands, self._arguments = list(commands), arguments

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        del complete_event
        text = document.text_before_cursor
        beginning = text[: text.rfind(" ") + 1]
        names = self._arguments[beginning]() if beginning in self._arguments else [] if beginning else self._commands
        word = text[len(beginning) :]
        return [Completion(name, -len(word)) for name in names if name.startswith(word)]
