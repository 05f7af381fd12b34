"""`greenroom chat`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from client.chat.answering import answer
from client.chat.commands import COMMANDS, Chat, CommandError, choose_model, run_command
from client.chat.conversation import Conversation
from client.chat.screen import Screen, prepare_streams
from client.errors import GreenroomError
from client.sync_client import Client
from client.terminal import (
    FAILURE,
    WRONG_USAGE,
    add_server_arguments,
    complain,
    describe,
    is_terminal,
    printable,
    server_of,
)

LOOK_SECONDS = 1.0  # between two looks whether the model is loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="to talk to (the first that the server has)")
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told before everything")


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends; the exit status, 1 if something in a pipe failed."""
    prepare_streams()
    is_plain = not is_terminal()
    url, options = server_of(arguments)
    try:
        client = Client(url, **options)
    except ValueError as error:
        return complain(str(error), WRONG_USAGE)
    screen = Screen(is_plain=is_plain)
    with client:
        try:
            wait_until_loaded(client, screen)
            model = choose_model(client, arguments.model)
            chat = Chat(client, Conversation(model, printable(arguments.system)), screen)
            if is_plain:
                return 0 if talk(chat, read_line) else FAILURE
            screen.note(f"{model} at {url} · /help lists commands, Ctrl-D ends")
            talk(chat, edit_line(chat))
        except CommandError as error:
            return complain(printable(str(error)), FAILURE)
        except GreenroomError as error:
            return complain(describe(error), FAILURE)
        except OSError as error:
            return complain(f"the answer can't be written: {error.strerror}", FAILURE)
        return 0


def wait_until_loaded(client: Client, screen: Screen, sleep: Callable[[float], None] = time.sleep) -> None:
    """Come back when the server has loaded its model, which may take minutes.

    Raises:
        GreenroomError: the server can't be asked.
    """
    is_told = False
    while client.ready().status == "loading":
        if not is_told:
            is_told = True
            screen.note("The server is loading its model.")
        sleep(LOOK_SECONDS)


def talk(chat: Chat, read: Callable[[], str]) -> bool:
    """Answer what is read until nothing more comes; whether all of it worked."""
    all_worked = True
    while not chat.is_over:
        try:
            all_worked &= respond(chat, read().strip())
        except EOFError:
            break
        except KeyboardInterrupt:
            if chat.screen.is_plain:
                raise
    return all_worked


def respond(chat: Chat, line: str) -> bool:
    """Answer a question or run a command; whether that worked."""
    if not line:
        return True
    if line.startswith("/") and not line.startswith("//"):
        return run_command(chat, line)
    return answer(chat.client, chat.conversation, line.removeprefix("/"), chat.screen)


def read_line() -> str:
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line


def edit_line(chat: Chat) -> Callable[[], str]:
    # Only a terminal needs the editor, which takes a while to import.
    from client.chat.editor import Editor  # noqa: PLC0415
    from client.chat.history import history_path, open_history  # noqa: PLC0415

    def toolbar() -> str:
        settings = [f"{name} {value}" for name, value in chat.conversation.options.items()]
        return " " + printable(" · ".join([chat.conversation.model, *settings, "/help"]))

    return Editor(open_history(history_path(os.environ)), COMMANDS, toolbar).read
