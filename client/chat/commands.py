"""What may be typed instead of a question: a table of commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from client.chat.conversation import SETTABLE, Conversation, value_of
from client.chat.experts_view import experts_view
from client.chat.screen import Screen
from client.errors import GreenroomError
from client.sync_client import Client
from client.terminal import describe, printable


@dataclass
class Chat:
    """All that a command may act on."""

    client: Client
    conversation: Conversation
    screen: Screen
    is_over: bool = False


class CommandError(Exception):
    """A command can't do what was asked; the message says why."""


@dataclass(frozen=True)
class Command:
    """One command; ``run`` takes what stands behind its name."""

    name: str
    argument: str
    summary: str
    run: Callable[[Chat, str], None]


def run_command(chat: Chat, line: str) -> bool:
    """Run a line that begins with a slash; False if that failed, which the user has been told."""
    name, _, argument = line.partition(" ")
    run = COMMANDS[name].run if name in COMMANDS else _refuse
    try:
        run(chat, argument.strip())
    except CommandError as error:
        chat.screen.complain(str(error))
        return False
    except GreenroomError as error:
        chat.screen.complain(describe(error))
        return False
    return True


def _refuse(_: Chat, __: str) -> None:
    raise CommandError("there is no such command: /help lists them, and // begins a question that starts with /")


def choose_model(client: Client, wanted: str | None) -> str:
    """The model of that name, or the server's first.

    Raises:
        CommandError: it has none.
        GreenroomError: the server can't be asked.
    """
    names = [model.id for model in client.models()]
    if not names or (wanted is not None and wanted not in names):
        raise CommandError(f"the server has no model {wanted or ''}: it has {', '.join(names) or 'none'}")
    return wanted or names[0]


def _model(chat: Chat, name: str) -> None:
    if name:
        chat.conversation.model = choose_model(chat.client, name)
    for model in chat.client.models():
        mark = "*" if model.id == chat.conversation.model else " "
        chat.screen.show(Text(f"{mark} {printable(model.id)}"))


def _experts(chat: Chat, _: str) -> None:
    chat.screen.show(experts_view(chat.client.experts()))


def _system(chat: Chat, text: str) -> None:
    chat.conversation.system = text
    chat.screen.note("The model is told this before everything." if text else "The model is told nothing beforehand.")


def _clear(chat: Chat, _: str) -> None:
    chat.conversation.turns.clear()
    chat.screen.note("What was said is forgotten.")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    options = chat.conversation.options
    if name and name not in SETTABLE:
        raise CommandError(f"{name} can't be set: there are {', '.join(SETTABLE)}")
    if value:
        options[name] = value_of(value.strip())
    else:
        options.pop(name, None)
    settings = [f"{name} = {value}" for name, value in options.items()]
    chat.screen.show(Text("\n".join(settings) or "Everything is as the model wants it."))


def _save(chat: Chat, path: str) -> None:
    if not path:
        raise CommandError("/save needs the name of a file")
    try:
        chat.conversation.save(Path(path).expanduser())
    except FileExistsError as error:
        raise CommandError(f"{path} is there already: choose another name") from error
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}") from error
    chat.screen.note(f"Saved as {path}.")


def _help(chat: Chat, _: str) -> None:
    table = Table.grid(padding=(0, 2))
    for command in COMMANDS.values():
        table.add_row(Text(f"{command.name} {command.argument}"), command.summary)
    keys = {
        "Alt-Enter, or \\ at the end": "a new line",
        "Ctrl-C": "stop the answer",
        "Ctrl-D": "end",
    }
    for key, meaning in keys.items():
        table.add_row(Text(key), meaning)
    chat.screen.show(table)


def _quit(chat: Chat, _: str) -> None:
    chat.is_over = True


COMMANDS = {
    command.name: command
    for command in (
        Command("/model", "[NAME]", "list the models, or talk to another", _model),
        Command("/experts", "", "where the experts are, and which are used most", _experts),
        Command("/system", "[TEXT]", "tell the model something before everything, or nothing", _system),
        Command("/set", "[NAME [VALUE]]", "set a parameter such as temperature, or leave it to the model", _set),
        Command("/clear", "", "forget what was said", _clear),
        Command("/save", "FILE", "write the conversation as JSON", _save),
        Command("/help", "", "this list", _help),
        Command("/quit", "", "end", _quit),
    )
}
