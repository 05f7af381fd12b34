"""The command line: repeated flags, and readers that go away."""

from __future__ import annotations

import subprocess
import tempfile
from unittest.mock import Mock

import pytest

from server.cli.main import parse, run_command
from tests.e2e.processes import start


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--port", "1", "--port", "2"),
        ("serve", "--config", "a.toml", "--config=a.toml"),
        ("inspect", "--memory", "1GiB", "--memory", "2GiB"),
        ("top", "--url", "a", "--url", "b"),
    ],
)
def test_a_repeated_flag_of_one_value_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"argument {words[1]}: it has one value, but is given more than once; give it once" in err


def test_a_flag_of_several_values_may_be_repeated() -> None:
    arguments = parse(("serve", "--api-key", "a", "--api-key", "b", "--port", "1"))
    assert (arguments.api_key, arguments.port) == (["a", "b"], "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("serve", "--help"),
        ("inspect",),
        ("inspect", "--json"),
        ("doctor", "--port", "0"),
        ("doctor", "--json"),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_causes_no_traceback(words: tuple[str, ...]) -> None:
    variables = {"PYTHONUNBUFFERED": "1"} if "--help" in words else {}  # then argparse gets the error, and ignores it
    with start(*words, environment=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == (0 if "--help" in words else 1)


def test_a_machine_without_a_folder_for_temporary_files_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    monkeypatch.setattr("sys.argv", ["greenroom", "verify", "."])
    monkeypatch.setattr("server.cli.verify.run", lambda _: tempfile.mkdtemp())
    with pytest.raises(SystemExit) as ended:
        run_command()
    line = "greenroom: no folder can hold temporary files; set TMPDIR to one that this user can write to\n"
    assert (ended.value.code, *capsys.readouterr()) == (1, "", line)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=["thread", "memory"])
def test_a_limit_of_the_process_is_named_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr("sys.argv", ["greenroom", "verify", "."])
    monkeypatch.setattr("server.cli.verify.run", Mock(side_effect=error))
    with pytest.raises(SystemExit, match="1"):
        run_command()
    assert capsys.readouterr().err.endswith(
        "raise the limits of this process (`ulimit -v`, `ulimit -d`, `ulimit -u`)\n"
    )


def test_another_error_of_the_runtime_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["greenroom", "verify", "."])
    monkeypatch.setattr("server.cli.verify.run", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run_command()
