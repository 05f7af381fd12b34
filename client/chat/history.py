"""The history of questions, in a file that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

OWNER_ONLY = 0o600


def history_path(environment: Mapping[str, str]) -> Path:
    """Return the path in the user's state folder, following the XDG specification."""
    state = environment.get("XDG_STATE_HOME", "")
    folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return folder / "greenroom" / "chat_history"


def open_history(path: Path) -> History:
    """Open the history file, or use a history in memory if the file cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, OWNER_ONLY), "rb") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), OWNER_ONLY)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
