"""One turn with a model that classifies: sends a text and shows the likeliest labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from client.chat.screen import Screen
from client.errors import GreenroomError
from client.server_info import Model
from client.sync_client import Client
from client.terminal import error_line, printable
from client.vectors import Classification

MAX_LABELS = 5


def label_models(models: Sequence[Model]) -> Collection[str]:
    """Return the names of the models that classify and write no text."""
    return {model.id for model in models if "classify" in model.tasks and "generate" not in model.tasks}


def run_label_turn(client: Client, model: str, text: str, screen: Screen) -> bool:
    """Classify a text and show its labels, the likeliest first. Return False if it failed."""
    try:
        (item,) = client.classify(text, model=model).items
    except GreenroomError as error:
        screen.error(error_line(error))
        return False
    screen.write(item.label if screen.is_plain else labels_text(item))
    screen.end_answer()
    return True


def labels_text(item: Classification) -> str:
    """Return a line for each of the likeliest labels."""
    likeliest = sorted(item.probabilities.items(), key=lambda pair: pair[1], reverse=True)[:MAX_LABELS]
    return "\n".join(f"{100 * probability:5.1f} %  {printable(label)}" for label, probability in likeliest)
