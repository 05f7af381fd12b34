"""Lines of a pipe are turns; answers come plain, and the exit status says whether all went well."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Client
from client.chat.command import add_arguments, run, wait_until_loaded
from client.chat.screen import Screen
from server.engine.request import GenerationFailedError
from tests.client.bodies import EXPERTS, KEY_HINT, REFUSAL
from tests.client.scripted import READY, Answer, ScriptedServer, model_list, said
from tests.e2e.processes import COMMAND, run_command
from tests.server.api.fakes import MODEL, WAIT_SECONDS, FakeServer

TEXT = "Once upon a time\n"

Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Talk within this process: lines to exit status, standard output and standard error."""

    def say(url: str, *lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = run(parser.parse_args(["--url", url, *flags]))
        return status, *capsys.readouterr()

    return say


def test_each_line_is_a_turn_of_one_conversation(talk: Talk, url: str, fake: FakeServer) -> None:
    assert talk(url, "Hi", "", "  And then?  ", flags=("--system", "Be kind.")) == (0, TEXT * 2, "")
    contents = [[message["content"] for message in messages] for messages in fake.codec.conversations]
    assert contents == [["Be kind.", "Hi"], ["Be kind.", "Hi", TEXT.strip(), "And then?"]]


def test_the_command_itself(url: str) -> None:
    done = run_command("chat", environment={"GREENROOM_URL": url})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_ends_a_pipe(url: str, fake: FakeServer) -> None:
    fake.engine.holds = True
    command = [COMMAND, "chat", "--url", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        assert process.stdout.read(len(TEXT) - 1) == TEXT.strip().encode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, out, err) == (130, b"\n", b"")
    assert fake.engine.streams[0].cancelled.wait(WAIT_SECONDS)


def test_commands_work_in_a_pipe(talk: Talk, url: str, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    lines = [
        "/set max_tokens 2",
        "Hi",
        "/model",
        "/set max_tokens",
        "/clear",
        "//etc?",
        f"/save {path}",
        "/quit",
        "lost",
    ]
    status, out, err = talk(url, *lines)
    assert (status, err) == (0, "")
    assert out == f"max_tokens = 2\nOnce upon\n* {MODEL}\nEverything is as the model wants it.\n{TEXT}"
    assert json.loads(path.read_text())["messages"][0] == {"role": "user", "content": "/etc?"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/nope", "there is no such command: /help lists them"),
        ("/model other", f"the server has no model other: it has {MODEL}"),
        ("/set tempo 3", "tempo can't be set: there are temperature, top_p"),
        ("/save", "/save needs the name of a file"),
        ("/save /dev/null", "/dev/null is there already: choose another name"),
        ("/save /nowhere/talk.json", "/nowhere/talk.json can't be written: No such file or directory"),
    ],
)
def test_a_command_that_fails_says_why_and_the_rest_goes_on(talk: Talk, url: str, line: str, complaint: str) -> None:
    status, out, err = talk(url, line, "Hi")
    assert (status, out) == (1, TEXT)
    assert err.startswith(f"greenroom: {complaint}")
    assert err.count("\n") == 1


def test_a_refused_question_is_no_part_of_the_conversation(talk: Talk, url: str, fake: FakeServer) -> None:
    status, out, err = talk(url, "/set temperature 9", "Hi", "/set temperature", "Again")
    assert (status, out.splitlines()[-1]) == (1, TEXT.strip())
    assert "'temperature'" in err
    assert [[message["content"] for message in messages] for messages in fake.codec.conversations] == [["Again"]]


def test_a_conversation_that_is_too_long_says_how_to_go_on(talk: Talk, url: str) -> None:
    status, out, err = talk(url, "a " * 100)
    assert (status, out) == (1, "")
    assert "maximum context length" in err
    assert err.endswith(" /clear forgets what was said.\n")


def test_what_came_of_an_answer_that_fails_stays(talk: Talk, url: str, fake: FakeServer) -> None:
    fake.engine.failure = GenerationFailedError("expert 3 of layer 1 is damaged")
    status, out, err = talk(url, "Hi")
    assert (status, out) == (1, TEXT)
    assert err == "greenroom: the answer broke off: expert 3 of layer 1 is damaged\n"


def test_a_server_that_dies_within_an_answer(talk: Talk, scripted: ScriptedServer) -> None:
    scripted.answers = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny")],
        "/v1/chat/completions": [said("Once", " upon", is_whole=False), said("Again.")],
    }
    status, out, err = talk(scripted.url, "Hi", "Go on")
    assert (status, out) == (1, "Once upon\nAgain.\n")
    assert err.startswith("greenroom: the answer broke off: the connection ended before the stream did")
    assert err.count("\n") == 1
    assert [message["content"] for message in scripted.requests[-1][1]["messages"]] == ["Hi", "Once upon", "Go on"]


def test_a_model_can_not_steer_the_terminal(talk: Talk, scripted: ScriptedServer) -> None:
    scripted.answers = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny\x1b[2J")],
        "/v1/chat/completions": [
            said("\x1b]0;", "owned\x07[bold]"),
            Answer(b'{"error": {"message": "\\u001b[8m"}}', status=400),
        ],
        "/v1/experts": [Answer(json.dumps(EXPERTS).encode())],
    }
    status, out, err = talk(scripted.url, "Hi", "/model", "/experts", "/model \x1b", "What?")
    assert status == 1
    assert "\x1b" not in out + err
    assert out.startswith("␛]0;owned␇[bold]\n* tiny␛[2J\n")


def test_experts_are_shown_in_short(talk: Talk, scripted: ScriptedServer) -> None:
    scripted.answers = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny")],
        "/v1/experts": [Answer(json.dumps(EXPERTS).encode()), Answer(json.dumps(REFUSAL).encode(), status=403)],
    }
    status, out, err = talk(scripted.url, "/experts", "/experts")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["host", "3", "of", "4", "slots", "3.0", "KiB", "4.0", "KiB", "1"],
        ["disk", "6", "6.0", "KiB"],
    ]
    assert "hit ratio 50.0 %, at best 75.0 % · 8.0 KiB read · 1.5 s stalled\n" in out
    assert "most used, as layer/expert (tokens): 1/3 (70), 1/2 (7)\n" in out
    assert (status, err) == (1, "greenroom: 'top_p' is wrong.\n")


def test_a_server_that_is_not_there(talk: Talk, free_port: int) -> None:
    status, out, err = talk(f"127.0.0.1:{free_port}", "Hi")
    assert (status, out) == (1, "")
    assert err.startswith(f"greenroom: no server answers at http://127.0.0.1:{free_port}: ")
    assert err.endswith("start a server with `greenroom serve`, or name another with --url\n")
    assert err.count("\n") == 1


def test_a_model_that_is_being_loaded_is_waited_for(scripted: ScriptedServer) -> None:
    scripted.answers = {"/ready": [Answer(b'{"status": "loading"}', status=503)] * 3 + [READY]}
    slept: list[float] = []
    with Client(scripted.url) as client:
        wait_until_loaded(client, Screen(is_plain=True), slept.append)
    assert len(slept) == 3


def test_a_model_that_is_not_there(talk: Talk, url: str) -> None:
    assert talk(url, "Hi", flags=("--model", "other")) == (
        1,
        "",
        f"greenroom: the server has no model other: it has {MODEL}\n",
    )


@pytest.mark.parametrize("wrong", ["http://", "ftp://host"])
def test_a_url_that_is_none(talk: Talk, wrong: str) -> None:
    status, _, err = talk(wrong, "Hi")
    assert status == 2
    assert "is no URL" in err


def test_a_key_that_is_wanted(talk: Talk, scripted: ScriptedServer) -> None:
    scripted.answers = {
        "/ready": [READY],
        "/v1/models": [Answer(json.dumps(REFUSAL).encode(), status=401)],
    }
    assert talk(scripted.url, "Hi") == (1, "", f"greenroom: 'top_p' is wrong; {KEY_HINT}\n")
