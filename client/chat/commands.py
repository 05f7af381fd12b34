"""The slash commands of the chat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from client.chat.conversation import AUTO, Conversation, ConversationError
from client.chat.experts_view import experts_view
from client.chat.models_view import adapter_names, adapters_view, model_names, models_view
from client.chat.parameters import ParameterError, check_name, parse_parameter, parse_weight, value_text
from client.chat.screen import Screen
from client.errors import GreenroomError
from client.server_info import Model
from client.sync_client import Client
from client.terminal import error_line


@dataclass
class ChatSession:
    """The state that commands act on."""

    client: Client
    conversation: Conversation
    screen: Screen
    is_finished: bool = False
    label_models: Collection[str] = ()  # names of models that classify and write no text


class CommandError(Exception):
    """A command failed; the message says why."""


@dataclass(frozen=True)
class Command:
    """One command; ``run`` takes the text after the name."""

    name: str
    argument: str
    summary: str
    run: Callable[[ChatSession, str], None]


def run_command(chat: ChatSession, line: str) -> bool:
    """Run a line that begins with a slash. Return False, after showing the error, if it failed."""
    name, _, argument = line.partition(" ")
    run = COMMANDS[name].run if name in COMMANDS else _unknown
    try:
        run(chat, argument.strip())
    except CommandError as error:
        chat.screen.error(str(error))
        return False
    except GreenroomError as error:
        chat.screen.error(error_line(error))
        return False
    return True


def _unknown(_: ChatSession, __: str) -> None:
    raise CommandError("unknown command: /help lists all commands; start a question that begins with / with //")


def choose_model(models: Sequence[Model], requested: str | None) -> str:
    """Return the requested model, or the server's first.

    Raises:
        CommandError: If the server has no such model.
    """
    names = model_names(models)
    if not names or (requested is not None and requested not in names):
        raise CommandError(f"the server has no model {requested or ''}; available: {', '.join(names) or 'none'}")
    return requested or names[0]


def _model(chat: ChatSession, name: str) -> None:
    if name:
        chat.conversation.model = choose_model(chat.client.models(), name)
    chat.screen.show(models_view(chat.client.models(), chat.conversation.model))


def _adapters(chat: ChatSession, argument: str) -> None:
    action, _, rest = argument.partition(" ")
    name, _, weight = rest.strip().partition(" ")
    names = adapter_names(chat.client.models())
    if action == "add" and name:
        _add_adapter(chat.conversation, name, weight.strip(), names)
    elif action == "remove" and name and not weight:
        if chat.conversation.adapters.pop(name, None) is None:
            raise CommandError(f"{name} was not added; /adapters lists those that are")
    elif action:
        raise CommandError("use /adapters add NAME [WEIGHT], /adapters remove NAME, or /adapters alone for the list")
    chat.screen.show(adapters_view(names, chat.conversation.adapters))


def _add_adapter(conversation: Conversation, name: str, weight: str, names: Sequence[str]) -> None:
    if name not in names:
        raise CommandError(f"the server has no adapter {name}; available: {', '.join(names) or 'none'}")
    if name == conversation.model:
        raise CommandError(f"{name} is the model of this chat already; switch to its base with /model first")
    try:
        conversation.adapters[name] = parse_weight(weight or "1")
    except ParameterError as error:
        raise CommandError(str(error)) from error


def _experts(chat: ChatSession, _: str) -> None:
    chat.screen.show(experts_view(chat.client.experts()))


def _system(chat: ChatSession, text: str) -> None:
    chat.conversation.system = text
    chat.screen.note("System prompt set." if text else "System prompt removed.")


def _clear(chat: ChatSession, _: str) -> None:
    chat.conversation.messages.clear()
    chat.screen.note("Conversation cleared.")


def _set(chat: ChatSession, argument: str) -> None:
    name, _, value = argument.partition(" ")
    options = chat.conversation.options
    try:
        if value:
            options[name] = parse_parameter(name, value.strip())
        elif name:
            check_name(name)
            options.pop(name, None)
    except ParameterError as error:
        raise CommandError(str(error)) from error
    settings = [f"{name} = {value_text(value)}" for name, value in options.items()]
    chat.screen.show(Text("\n".join(settings) or "All parameters have their defaults."))
    if name == "routing" and value and chat.conversation.model != AUTO:
        chat.screen.note("It is for the model auto: switch with /model auto.")


def _save(chat: ChatSession, path: str) -> None:
    if not path:
        raise CommandError("/save needs a file name")
    try:
        chat.conversation.save(Path(path).expanduser())
    except FileExistsError as error:
        raise CommandError(f"{path} already exists; choose another name") from error
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
    chat.screen.note(f"Saved as {path}.")


def _load(chat: ChatSession, path: str) -> None:
    if not path:
        raise CommandError("/load needs a file name")
    load_conversation(chat, path)


def load_conversation(chat: ChatSession, path: str) -> None:
    """Continue a conversation that `/save` wrote, with its model if the server still has it.

    Raises:
        CommandError: If the file cannot be used.
        GreenroomError: If the server cannot be reached.
    """
    try:
        loaded = Conversation.load(Path(path).expanduser())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    except (ConversationError, ParameterError) as error:
        raise CommandError(f"cannot load {path}: {error}") from error
    if loaded.model not in model_names(chat.client.models()):
        loaded.model = chat.conversation.model
    chat.conversation = loaded
    chat.screen.note(f"Loaded {len(loaded.messages)} messages from {path}; the model is {loaded.model}.")


def _help(chat: ChatSession, _: str) -> None:
    table = Table.grid(padding=(0, 2))
    for command in COMMANDS.values():
        table.add_row(Text(f"{command.name} {command.argument}"), command.summary)
    keys = {
        "Alt-Enter, or \\ before Enter": "start a new line",
        "Ctrl-C": "stop the answer",
        "Ctrl-D": "quit",
    }
    for key, meaning in keys.items():
        table.add_row(Text(key), meaning)
    chat.screen.show(table)


def _quit(chat: ChatSession, _: str) -> None:
    chat.is_finished = True


COMMANDS = {
    command.name: command
    for command in (
        Command("/model", "[NAME]", "list the models, or switch to another", _model),
        Command("/adapters", "[add NAME [WEIGHT] | remove NAME]", "list, add or remove LoRA adapters", _adapters),
        Command("/experts", "", "show where the experts are, and which are used most", _experts),
        Command("/system", "[TEXT]", "set or remove the system prompt", _system),
        Command(
            "/set", "[NAME [VALUE]]", "set a parameter such as temperature or routing, or reset it to its default", _set
        ),
        Command("/clear", "", "clear the conversation", _clear),
        Command("/save", "FILE", "save the conversation as JSON", _save),
        Command("/load", "FILE", "continue a conversation that /save wrote", _load),
        Command("/help", "", "show this list", _help),
        Command("/quit", "", "quit", _quit),
    )
}
