"""Chat without a terminal: each line of input is a turn, answers are plain text, failures set the exit status."""

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
from client.chat.parameters import MAX_TOKENS
from client.chat.screen import Screen
from client.chat.turn import CUT_OFF
from server.engine.interface import GenerationFailedError
from tests.client.bodies import EXPERTS, KEY_HINT, REFUSAL
from tests.client.scripted import READY, ScriptedReply, ScriptedServer, chat_stream, model_list
from tests.e2e.processes import COMMAND, run_command
from tests.server.api.fakes import MODEL, WAIT_SECONDS, FakeServer

pytestmark = pytest.mark.slow

TEXT = "Once upon a time\n"

RunChat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunChat:
    """Run a chat in this process. Takes input lines; returns exit status, standard output and standard error."""

    def chat(url: str, *lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = run(parser.parse_args(["--url", url, *flags]))
        return status, *capsys.readouterr()

    return chat


def test_each_line_is_a_turn_of_one_conversation(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    assert run_chat(url, "Hi", "", "  And then?  ", flags=("--system", "Be kind.")) == (0, TEXT * 2, "")
    contents = [[message["content"] for message in messages] for messages in fake.codec.conversations]
    assert contents == [["Be kind.", "Hi"], ["Be kind.", "Hi", TEXT.strip(), "And then?"]]


def test_the_command_itself(url: str) -> None:
    done = run_command("chat", environment={"GREENROOM_URL": url})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_question_of_the_command_line_is_answered_once(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    assert run_chat(url, "unread", flags=("/etc?",)) == (0, TEXT, "")
    assert [[message["content"] for message in messages] for messages in fake.codec.conversations] == [["/etc?"]]


def test_a_dash_takes_all_lines_of_a_pipe_as_one_question(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    assert run_chat(url, "One", "", "two", flags=("-",)) == (0, TEXT, "")
    assert [message["content"] for message in fake.codec.conversations[0]] == ["One\n\ntwo"]


@pytest.mark.parametrize("question", ["", " ", "-"])
def test_an_empty_question_is_refused(run_chat: RunChat, url: str, question: str) -> None:
    status, out, err = run_chat(url, flags=(question,))
    assert (status, out) == (2, "")
    assert err.startswith("greenroom: the question is empty; use ")


def test_a_refused_question_of_the_command_line_is_a_failure(run_chat: RunChat, url: str) -> None:
    status, out, _ = run_chat(url, flags=("a " * 5000,))
    assert (status, out) == (1, "")


@pytest.mark.parametrize("flags", [(), ("--system", "Be brief.", "--model", MODEL)])
def test_a_saved_conversation_is_continued(
    run_chat: RunChat, url: str, fake: FakeServer, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    path = str(tmp_path / "talk.json")
    lines = ("/set max_tokens 2", "Hi", f"/save {path}")
    assert run_chat(url, *lines, flags=("--system", "Be kind."))[0] == 0
    assert run_chat(url, flags=("--load", path, "And then?", *flags)) == (0, "Once upon\n", "")
    system = flags[1] if flags else "Be kind."
    contents = [message["content"] for message in fake.codec.conversations[-1]]
    assert contents == [system, "Hi", "Once upon", "And then?"]
    fake.codec.conversations.clear()
    assert run_chat(url, "Forgotten", f"/load {path}", "And then?")[0] == 0
    assert [message["content"] for message in fake.codec.conversations[-1]][1:] == ["Hi", "Once upon", "And then?"]


def test_a_loaded_conversation_of_an_unknown_model_goes_on_with_the_present_one(
    run_chat: RunChat, url: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"model": "gone", "messages": []}')
    assert run_chat(url, "/model", flags=("--load", str(path))) == (0, f"* {MODEL}\n", "")


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


def test_commands_work_in_a_pipe(run_chat: RunChat, url: str, fake: FakeServer, tmp_path: Path) -> None:
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
    status, out, err = run_chat(url, *lines)
    assert (status, err) == (0, "")
    assert out == f"max_tokens = 2\nOnce upon\n* {MODEL}\nAll parameters have their defaults.\n{TEXT}"
    assert json.loads(path.read_text())["messages"][0] == {"role": "user", "content": "/etc?"}


@pytest.mark.parametrize(
    ("flags", "lines", "limit"),
    [
        ((), (), MAX_TOKENS),
        (("--max-tokens", "3"), (), 3),
        (("--max-tokens", "0"), (), 4094),  # the model's context without the prompt's tokens
        (("--max-tokens", "3"), ("/set max_tokens 4",), 4),
        (("--max-tokens", "3"), ("/set max_tokens",), MAX_TOKENS),
    ],
)
def test_an_answer_has_a_limit_that_the_user_may_change(
    run_chat: RunChat, url: str, fake: FakeServer, flags: tuple[str, ...], lines: tuple[str, ...], limit: int
) -> None:
    assert run_chat(url, *lines, "Hi", flags=flags)[0] == 0
    assert [request.sampling.max_tokens for request in fake.engine.requests] == [limit]


def test_the_default_limit_shrinks_to_what_fits_the_model(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    fake.engine.max_model_len = 64
    assert run_chat(url, "Hi", flags=("--system", "Be kind.")) == (0, TEXT, "")
    assert [request.sampling.max_tokens for request in fake.engine.requests] == [60]


def test_an_answer_that_the_default_limit_cuts_is_told_on_standard_error(
    run_chat: RunChat, url: str, fake: FakeServer
) -> None:
    fake.engine.texts = ("a ",) * (MAX_TOKENS + 1)
    status, out, err = run_chat(url, "Hi")
    assert (status, out) == (0, "a " * MAX_TOKENS + "\n")
    assert err == f"greenroom: {CUT_OFF}\n"


@pytest.mark.parametrize("limit", ["-1", "many"])
def test_a_wrong_limit_is_refused(run_chat: RunChat, url: str, limit: str) -> None:
    status, out, err = run_chat(url, flags=(f"--max-tokens={limit}",))
    assert (status, out) == (2, "")
    assert err == f"greenroom: --max-tokens must be a whole number, such as 64, or 0 for no limit, not {limit}\n"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/nope", "unknown command: /help lists all commands"),
        ("/model other", f"the server has no model other; available: {MODEL}"),
        ("/set temperature hot", "temperature must be a number, such as 0.7, not hot"),
        ("/load", "/load needs a file name"),
        ("/load /nowhere/talk.json", "cannot read /nowhere/talk.json: No such file or directory"),
        ("/load /dev/null", "cannot load /dev/null: it is not JSON"),
        ("/set tempo 3", "unknown parameter tempo; available: temperature, top_p"),
        ("/save", "/save needs a file name"),
        ("/save /dev/null", "/dev/null already exists; choose another name"),
        ("/save /nowhere/talk.json", "cannot write /nowhere/talk.json: No such file or directory"),
    ],
)
def test_the_chat_continues_after_a_failing_command(run_chat: RunChat, url: str, line: str, error: str) -> None:
    status, out, err = run_chat(url, line, "Hi")
    assert (status, out) == (1, TEXT)
    assert err.startswith(f"greenroom: {error}")
    assert err.count("\n") == 1


def test_a_refused_question_is_not_added_to_the_conversation(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    status, out, err = run_chat(url, "/set temperature 9", "Hi", "/set temperature", "Again")
    assert (status, out.splitlines()[-1]) == (1, TEXT.strip())
    assert "'temperature'" in err
    assert [[message["content"] for message in messages] for messages in fake.codec.conversations] == [["Again"]]


def test_a_conversation_that_is_too_long_suggests_clear(run_chat: RunChat, url: str) -> None:
    status, out, err = run_chat(url, "a " * 5000)
    assert (status, out) == (1, "")
    assert "maximum context length" in err
    assert err.endswith(" Use /clear to start a new conversation.\n")


def test_the_beginning_of_a_failed_answer_is_kept(run_chat: RunChat, url: str, fake: FakeServer) -> None:
    fake.engine.failure = GenerationFailedError("expert 3 of layer 1 is damaged")
    status, out, err = run_chat(url, "Hi")
    assert (status, out) == (1, TEXT)
    assert err == "greenroom: the answer is incomplete: expert 3 of layer 1 is damaged\n"


def test_a_server_that_dies_during_an_answer(run_chat: RunChat, scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny")],
        "/v1/chat/completions": [chat_stream("Once", " upon", is_complete=False), chat_stream("Again.")],
    }
    status, out, err = run_chat(scripted.url, "Hi", "Go on")
    assert (status, out) == (1, "Once upon\nAgain.\n")
    assert err.startswith("greenroom: the answer is incomplete: the connection ended before the stream did")
    assert err.count("\n") == 1
    assert [message["content"] for message in scripted.requests[-1][1]["messages"]] == ["Hi", "Once upon", "Go on"]


def test_model_output_cannot_control_the_terminal(run_chat: RunChat, scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny\x1b[2J")],
        "/v1/chat/completions": [
            chat_stream("\x1b]0;", "owned\x07[bold]"),
            ScriptedReply(b'{"error": {"message": "\\u001b[8m"}}', status=400),
        ],
        "/v1/experts": [ScriptedReply(json.dumps(EXPERTS).encode())],
    }
    status, out, err = run_chat(scripted.url, "Hi", "/model", "/experts", "/model \x1b", "What?")
    assert status == 1
    assert "\x1b" not in out + err
    assert out.startswith("␛]0;owned␇[bold]\n* tiny␛[2J\n")


def test_experts_command_shows_a_summary(run_chat: RunChat, scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny")],
        "/v1/experts": [
            ScriptedReply(json.dumps(EXPERTS).encode()),
            ScriptedReply(json.dumps(REFUSAL).encode(), status=403),
        ],
    }
    status, out, err = run_chat(scripted.url, "/experts", "/experts")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["host", "3", "of", "4", "slots", "3.0", "KiB", "4.0", "KiB", "1"],
        ["disk", "6", "6.0", "KiB"],
    ]
    assert "hit ratio 50.0 % (optimal 75.0 %) · 8.0 KiB read · 1.5 s stalled\n" in out
    assert "most used, as layer/expert (tokens): 1/3 (70), 1/2 (7)\n" in out
    assert (status, err) == (1, "greenroom: 'top_p' is wrong.\n")


def test_adapters_are_added_removed_saved_and_loaded(
    run_chat: RunChat, scripted: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny", "tiny:law", "code", "poems", parent="tiny")],
        "/v1/chat/completions": [chat_stream("Yes.")],
    }
    lines = ("/adapters", "/adapters add code 0.5", "/adapters add poems", "/adapters remove poems", f"/save {path}")
    status, out, err = run_chat(scripted.url, *lines)
    assert (status, err) == (0, "")
    lists = ["  code", "  poems"], ["* code 0.5", "  poems"], ["* code 0.5", "* poems 1"], ["* code 0.5", "  poems"]
    assert out.splitlines() == [line for each in lists for line in each]
    assert run_chat(scripted.url, flags=("--load", str(path), "Hi"))[:2] == (0, "Yes.\n")
    assert scripted.requests[-1][1]["adapters"] == [{"name": "code", "weight": 0.5}]


def test_adapters_are_chosen_for_each_token_by_the_model_auto(
    run_chat: RunChat, scripted: ScriptedServer, tmp_path: Path
) -> None:
    """The server does not list ``auto``, because none of its adapters has examples."""
    path = tmp_path / "talk.json"
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny", "code", parent="tiny")],
        "/v1/chat/completions": [chat_stream("Yes.")],
    }
    arrow, top = {"method": "arrow"}, {"method": "arrow", "top_k": 2}
    lines = ("/set routing arrow", "/model auto", "Hi", f"/set routing {json.dumps(top)}", "Hi", f"/save {path}")
    status, out, err = run_chat(scripted.url, *lines)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "routing = arrow",
        *["  tiny", "  code", "* auto", "Yes."],
        f"routing = {json.dumps(top)}",
        "Yes.",
    ]
    assert run_chat(scripted.url, flags=("--load", str(path), "Hi"))[:2] == (0, "Yes.\n")
    sent = [body for name, body in scripted.requests if name == "/v1/chat/completions"]
    assert [(body["model"], body["routing"]) for body in sent] == [("auto", arrow), ("auto", top), ("auto", top)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/adapters add other", "the server has no adapter other; available: code"),
        ("/adapters add tiny:law", "the server has no adapter tiny:law; available: code"),
        ("/adapters add code much", "the weight of an adapter must be a number, such as 0.5, not much"),
        ("/adapters add code nan", "the weight of an adapter must be a number, such as 0.5, not nan"),
        ("/adapters remove code", "code was not added; /adapters lists those that are"),
        ("/adapters code", "use /adapters add NAME [WEIGHT], /adapters remove NAME, or /adapters alone for the list"),
    ],
)
def test_a_wrong_adapters_command_says_what_is_right(
    run_chat: RunChat, scripted: ScriptedServer, line: str, error: str
) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny", "tiny:law", "code", parent="tiny")],
    }
    assert run_chat(scripted.url, line) == (1, "", f"greenroom: {error}\n")


def test_an_unreachable_server(run_chat: RunChat, free_port: int) -> None:
    status, out, err = run_chat(f"127.0.0.1:{free_port}", "Hi")
    assert (status, out) == (1, "")
    assert err.startswith(f"greenroom: no server responds at http://127.0.0.1:{free_port}: ")
    assert err.endswith("start a server with `greenroom serve`, or set another address with --url\n")
    assert err.count("\n") == 1


def test_chat_waits_while_the_model_is_loading(scripted: ScriptedServer) -> None:
    scripted.replies = {"/ready": [ScriptedReply(b'{"status": "loading"}', status=503)] * 3 + [READY]}
    slept: list[float] = []
    with Client(scripted.url) as client:
        wait_until_loaded(client, Screen(is_plain=True), slept.append)
    assert len(slept) == 3


def test_an_unknown_model(run_chat: RunChat, url: str) -> None:
    assert run_chat(url, "Hi", flags=("--model", "other")) == (
        1,
        "",
        f"greenroom: the server has no model other; available: {MODEL}\n",
    )


@pytest.mark.parametrize("wrong", ["http://", "ftp://host"])
def test_an_invalid_url(run_chat: RunChat, wrong: str) -> None:
    status, _, err = run_chat(wrong, "Hi")
    assert status == 2
    assert "is not a valid URL" in err


def test_a_missing_key(run_chat: RunChat, scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [ScriptedReply(json.dumps(REFUSAL).encode(), status=401)],
    }
    assert run_chat(scripted.url, "Hi") == (1, "", f"greenroom: 'top_p' is wrong; {KEY_HINT}\n")
