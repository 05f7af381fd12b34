"""Questions are kept in the user's state folder, for nobody else."""

from __future__ import annotations

from pathlib import Path

from prompt_toolkit.history import FileHistory, InMemoryHistory

from client.chat.history import history_path, open_history


def test_the_state_folder_is_the_environments_or_the_usual() -> None:
    assert history_path({"XDG_STATE_HOME": "/state"}) == Path("/state/greenroom/chat_history")
    usual = Path.home() / ".local/state/greenroom/chat_history"
    assert history_path({}) == usual
    assert history_path({"XDG_STATE_HOME": "relative"}) == usual  # as the specification says


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "greenroom" / "chat_history"
    open_history(path).append_string("secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    history = open_history(path)
    assert isinstance(history, FileHistory)
    assert list(history.load_history_strings()) == ["secret"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_no_file_can_be_written_it_lasts_as_long_as_the_chat(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file" / "chat_history"), InMemoryHistory)
