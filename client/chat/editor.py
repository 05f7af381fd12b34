"""The input editor of the chat, for one or more lines."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, CONTINUATION = "> ", "  "


class Editor:
    """Enter sends; Alt-Enter, or a backslash before Enter, starts a new line; pasted text keeps its lines."""

    def __init__(
        self,
        history: History,
        completer: Completer,
        toolbar: Callable[[], str],
    ):
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUATION,
            history=history,
            key_bindings=_key_bindings(),
            completer=completer,
            complete_while_typing=False,
            bottom_toolbar=toolbar,
        )

    def read(self) -> str:
        """Read one input.

        Raises:
            KeyboardInterrupt: On Ctrl-C; the input is dropped.
            EOFError: On Ctrl-D with empty input.
        """
        return self._session.prompt()


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings
