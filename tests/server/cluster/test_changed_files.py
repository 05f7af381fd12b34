"""Notice of changed files."""

from pathlib import Path

import pytest

from server.cluster.changed_files import ChangedFiles


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("a")
    return path


def test_a_file_that_stays_is_not_changed(file: Path) -> None:
    assert not ChangedFiles([file, None]).are_changed()


def test_a_file_that_is_written_is_changed_once(file: Path) -> None:
    files = ChangedFiles([None, file])
    file.write_text("longer")
    assert [files.are_changed(), files.are_changed()] == [True, False]


def test_another_file_of_the_same_name_and_size_is_a_change(file: Path) -> None:
    files = ChangedFiles([file])
    other = file.with_name("other")
    other.write_text("b")
    other.replace(file)  # as Kubernetes does with a mounted secret
    assert files.are_changed()


def test_a_file_that_is_gone_is_a_change(file: Path) -> None:
    files = ChangedFiles([file])
    file.unlink()
    assert files.are_changed()
