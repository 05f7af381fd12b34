"""The command `greenroom chat`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from client.chat.commands import (
    COMMANDS,
    ChatSession,
    CommandError,
    choose_model,
    load_conversation,
    run_command,
)
from client.chat.conversation import Conversation
from client.chat.label_turn import label_models, run_label_turn
from client.chat.models_view import adapter_names, model_names
from client.chat.parameters import KINDS, MAX_TOKENS, ROUTING_METHODS, ParameterError, parse_parameter, value_text
from client.chat.screen import Screen, prepare_streams
from client.chat.turn import run_turn
from client.errors import GreenroomError
from client.server_info import Model
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
    parser.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="answer this question alone and exit; -: the question is all of standard input",
    )
    parser.add_argument("--model", metavar="NAME", help="model to chat with (default: the server's first)")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        help=f"tokens of the longest answer; 0: as many as fit the model (default: {MAX_TOKENS}, as far as they fit)",
    )
    parser.add_argument("--load", metavar="FILE", help="continue a conversation that /save wrote")


def run(arguments: argparse.Namespace) -> int:
    """Answer the question, or chat until the input ends. Return the exit status.

    It is 1 if anything failed while input is not a terminal.
    """
    prepare_streams()
    url, options = server_from(arguments)
    try:
        question, max_tokens = read_question(arguments.question), read_limit(arguments.max_tokens)
        client = Client(url, **options)
    except ValueError as error:
        return report_error(str(error), WRONG_USAGE)
    screen = Screen(is_plain=question is not None or not is_terminal())
    with client:
        try:
            wait_until_loaded(client, screen)
            chat = open_chat(client, arguments, screen)
            chat.conversation.options |= max_tokens
            return 0 if answer(chat, question, url) else FAILURE
        except CommandError as error:
            return report_error(printable(str(error)), FAILURE)
        except GreenroomError as error:
            return report_error(error_line(error), FAILURE)
        except OSError as error:
            return report_error(f"cannot write the answer: {error.strerror}", FAILURE)


def read_question(argument: str | None) -> str | None:
    """Return the question of the command line, which ``-`` takes from standard input; None to chat.

    Raises:
        ValueError: The question is empty.
    """
    if argument == "-":
        argument = sys.stdin.read() if sys.stdin is not None else ""
    if argument is not None and not argument.strip():
        raise ValueError('the question is empty; use greenroom chat "QUESTION", or greenroom chat - with a pipe')
    return argument


def read_limit(argument: str | None) -> dict[str, int]:
    """Return the option that ``--max-tokens`` sets.

    Raises:
        ValueError: It is no limit.
    """
    if argument is None:
        return {}
    try:
        return {"max_tokens": parse_parameter("max_tokens", argument)}
    except ParameterError as error:
        raise ValueError(f"--{error}".replace("_", "-", 1)) from error


def answer(chat: ChatSession, question: str | None, url: str) -> bool:
    """Answer one question, or those that are read. Return False if anything failed while input is not a terminal."""
    if question is not None:
        return respond(chat, question.strip())
    if chat.screen.is_plain:
        return run_chat(chat, read_line)
    chat.screen.note(f"{chat.conversation.model} at {url} · /help lists commands, Ctrl-D quits")
    run_chat(chat, edit_line(chat))
    return True


def open_chat(client: Client, arguments: argparse.Namespace, screen: Screen) -> ChatSession:
    """Begin a conversation, or continue that of ``--load``; ``--model`` and ``--system`` override what it says.

    Raises:
        CommandError: If the server has no such model, or the file cannot be used.
        GreenroomError: If the server cannot be reached.
    """
    models = client.models()
    conversation = Conversation(choose_model(models, arguments.model))
    chat = ChatSession(client, conversation, screen, label_models=label_models(models))
    if arguments.load is not None:
        chosen = chat.conversation.model
        load_conversation(chat, arguments.load)
        if arguments.model is not None:
            chat.conversation.model = chosen
    if arguments.system is not None:
        chat.conversation.system = printable(arguments.system)
    return chat


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
    return respond(chat, line.removeprefix("/"))


def respond(chat: ChatSession, text: str) -> bool:
    """Answer a question, or name the labels of a text if the model classifies. Return True if it succeeded."""
    model = chat.conversation.model
    if model in chat.label_models:
        return run_label_turn(chat.client, model, text, chat.screen)
    return run_turn(chat.client, chat.conversation, text, chat.screen)


def read_line() -> str:
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line


def edit_line(chat: ChatSession) -> Callable[[], str]:
    # Imported here, because the editor is slow to import and only needed on a terminal.
    from client.chat.completion import CommandCompleter  # noqa: PLC0415
    from client.chat.editor import Editor  # noqa: PLC0415
    from client.chat.history import history_path, open_history  # noqa: PLC0415

    def toolbar() -> str:
        added = [f"+{name} {weight:g}" for name, weight in chat.conversation.adapters.items()]
        settings = [*added, *(f"{name} {value_text(value)}" for name, value in chat.conversation.options.items())]
        return " " + printable(" · ".join([chat.conversation.model, *settings, "/help"]))

    return Editor(open_history(history_path(os.environ)), CommandCompleter(COMMANDS, arguments(chat)), toolbar).read


def arguments(chat: ChatSession) -> dict[str, Callable[[], Sequence[str]]]:
    """Return what may follow the beginning of a command, by functions that ask the server where it is needed."""

    def models() -> list[Model]:
        try:
            return chat.client.models()
        except GreenroomError:
            return []  # nothing is completed; the command itself will say why

    return {
        "/model ": lambda: model_names(models()),
        "/set ": lambda: list(KINDS),
        "/set routing ": lambda: ROUTING_METHODS,
        "/adapters ": lambda: ["add", "remove"],
        "/adapters add ": lambda: adapter_names(models()),
        "/adapters remove ": lambda: list(chat.conversation.adapters),
    }
