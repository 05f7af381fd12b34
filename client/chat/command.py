"""The command `greenroom chat`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from client.chat.commands import COMMANDS, ChatSession, CommandError, choose_model, run_command
from client.chat.conversation import Conversation
from client.chat.screen import Screen, prepare_streams
from client.chat.turn import run_turn
from client.errors import GreenroomError
from client.sync_client import Client
from client.terminal import (
    FAILURE,
    WRONG_USAGE,
    add_server_arguments,
    error_line,
    is_terminal,
    printable,
    report_error,
    server_from,
)

POLL_SECONDS = 1.0  # interval of readiness checks while the model is loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="model to chat with (default: the server's first)")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")


def run(arguments: argparse.Namespace) -> int:
    """Chat until the input ends. Return the exit status: 1 if anything failed while input is not a terminal."""
    prepare_streams()
    is_plain = not is_terminal()
    url, options = server_from(arguments)
    try:
        client = Client(url, **options)
    except ValueError as error:
        return report_error(str(error), WRONG_USAGE)
    screen = Screen(is_plain=is_plain)
    with client:
        try:
            wait_until_loaded(client, screen)
            model = choose_model(client, arguments.model)
            chat = ChatSession(client, Conversation(model, printable(arguments.system)), screen)
            if is_plain:
                return 0 if run_chat(chat, read_line) else FAILURE
            screen.note(f"{model} at {url} · /help lists commands, Ctrl-D quits")
            run_chat(chat, edit_line(chat))
        except CommandError as error:
            return report_error(printable(str(error)), FAILURE)
        except GreenroomError as error:
            return report_error(error_line(error), FAILURE)
        except OSError as error:
            return report_error(f"cannot write the answer: {error.strerror}", FAILURE)
        return 0


def wait_until_loaded(client: Client, screen: Screen, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the server has loaded its model, which may take minutes.

    Raises:
        GreenroomError: If the server cannot be reached.
    """
    is_noted = False
    while client.ready().status == "loading":
        if not is_noted:
            is_noted = True
            screen.note("Waiting for the server to load its model.")
        sleep(POLL_SECONDS)


def run_chat(chat: ChatSession, read: Callable[[], str]) -> bool:
    """Process lines until the input ends. Return True if all of them succeeded."""
    all_succeeded = True
    while not chat.is_finished:
        try:
            all_succeeded &= process_line(chat, read().strip())
        except EOFError:
            break
        except KeyboardInterrupt:
            if chat.screen.is_plain:
                raise
    return all_succeeded


def process_line(chat: ChatSession, line: str) -> bool:
    """Send a question or run a command. Return True if it succeeded."""
    if not line:
        return True
    if line.startswith("/") and not line.startswith("//"):
        return run_command(chat, line)
    return run_turn(chat.client, chat.conversation, line.removeprefix("/"), chat.screen)


def read_line() -> str:
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line


def edit_line(chat: ChatSession) -> Callable[[], str]:
    # Imported here, because the editor is slow to import and only needed on a terminal.
    from client.chat.editor import Editor  # noqa: PLC0415
    from client.chat.history import history_path, open_history  # noqa: PLC0415

    def toolbar() -> str:
        settings = [f"{name} {value}" for name, value in chat.conversation.options.items()]
        return " " + printable(" · ".join([chat.conversation.model, *settings, "/help"]))

    return Editor(open_history(history_path(os.environ)), COMMANDS, toolbar).read
