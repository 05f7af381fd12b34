"""The outputs of `/model` and `/adapters`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from client.chat.conversation import AUTO
from client.server_info import Model
from client.terminal import printable

NO_ADAPTERS = "The server has no adapters."


def models_view(models: Sequence[Model], chosen: str) -> RenderableType:
    """Return a line for each model, with a mark at the chosen one."""
    return Text("\n".join(f"{'*' if name == chosen else ' '} {printable(name)}" for name in model_names(models)))


def model_names(models: Sequence[Model]) -> list[str]:
    """Return the names that a chat may ask for; with adapters ``auto``, which is listed only if they have examples."""
    return list(dict.fromkeys([*(model.id for model in models), *([AUTO] if adapter_names(models) else [])]))


def adapter_names(models: Sequence[Model]) -> list[str]:
    """Return the models that are LoRA adapters; expert variants are named ``BASE:VARIANT``, and a router ``auto``."""
    return [
        model.id
        for model in models
        if model.parent is not None and model.id != AUTO and not model.id.startswith(f"{model.parent}:")
    ]


def adapters_view(names: Sequence[str], added: Mapping[str, float]) -> RenderableType:
    """Return a line for each adapter, with the weights of those that were added."""
    lines = [
        f"* {printable(name)} {added[name]:g}" if name in added else f"  {printable(name)}"
        for name in dict.fromkeys([*names, *added])
    ]
    return Text("\n".join(lines) or NO_ADAPTERS)
