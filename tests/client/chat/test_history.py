"""The chat history in the user's state folder."""

from __future__ import annotations

from pathlib import Path

from prompt_toolkit.history import FileHistory, InMemoryHistory

from client.chat.history import history_path, open_history


def test_state_folder_comes_from_the_environment_or_is_the_default() -> None:
    assert history_path({"XDG_STATE_HOME": "/state"}) == Path("/state/greenroom/chat_history")
    default = Path.home() / ".local/state/greenroom/chat_history"
    assert history_path({}) == default
    assert history_path({"XDG_STATE_HOME": "relative"}) == default  # the specification ignores relative paths


def test_history_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "greenroom" / "chat_history"
    open_history(path).append_string("secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    history = open_history(path)
    assert isinstance(history, FileHistory)
    assert list(history.load_history_strings()) == ["secret"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_history_is_in_memory_if_no_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file" / "chat_history"), InMemoryHistory)
