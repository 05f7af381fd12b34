"""Flags, keys, variables and commands of other servers are explained, not merely refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.main import parse
from server.other_servers import SAME, TABLES, explain, explain_variables
from server.settings import ServeSettings, SettingsError, flag_name, load_settings

OURS = {flag_name(name) for name in ServeSettings.model_fields} | {"--config"}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line with which a command line is refused as wrong usage."""
    with pytest.raises(SystemExit) as ended:
        parse(words)
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-num-seqs", "8"), "--max-num-seqs is a flag of vLLM; here it is --max-running-requests: 64 by default"),
        (("--quantization=fp8",), "--quantization is a flag of vLLM and SGLang; it is not needed here: the format is"),
        (("-hf", "owner/model"), "-hf is a flag of llama.cpp; here it is greenroom serve OWNER/MODEL"),
        (("-c", "4096"), "-c is a flag of llama.cpp; here it is --max-model-len"),
        (("--no-mmap",), "--no-mmap is a flag of llama.cpp; here it is --memory"),
        (("--max_num_seqs", "8"), "--max-num-seqs is a flag of vLLM"),
        (("--mem-fraction-static", "0.8"), "--mem-fraction-static is a flag of SGLang; here it is --memory 90%"),
        (("--trust-remote-code",), "it is absent here: code of a checkpoint never runs"),
        (("--max_model_len", "9"), "unrecognized arguments: --max_model_len (did you mean --max-model-len?)"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_flag_of_another_server_is_explained(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal(capsys, "serve", *words)


def test_all_flags_of_other_servers_in_a_command_line_are_explained_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(capsys, "serve", "-ngl", "99", "--jinja", "-m", "model.gguf", "--port", "1")
    assert [line.count(f"{flag} is a flag of llama.cpp") for flag in ("-ngl", "--jinja", "-m")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "run",
            "run is a command of Ollama; here it is greenroom serve ollama:MODEL, then greenroom chat: MODEL is found",
        ),
        ("pull", "pull is a command of Ollama; it is not needed here: greenroom serve MODEL downloads; in advance: hf"),
        ("ps", "ps is a command of Ollama; here it is greenroom top: "),
        ("list", "list is a command of Ollama; here it is /v1/models, or hf cache ls for what was downloaded"),
        ("show", "show is a command of Ollama; here it is greenroom inspect MODEL: "),
        ("rm", "rm is a command of Ollama; here it is hf cache rm model/OWNER/NAME: "),
        ("stop", "stop is a command of Ollama; it is absent here: a server has one model: end it by Ctrl-C or SIGTERM"),
        ("run-batch", "run-batch is a command of vLLM; it is absent here: send the requests one by one"),
        ("serv", "there is no command serv (did you mean serve?)"),
    ],
)
def test_a_command_of_another_server_is_explained(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, word, "qwen3").startswith(f"greenroom: {told}")


def test_what_follows_the_end_of_flags_is_no_flag() -> None:
    assert parse(("serve", "--", "-c")).model == "-c"


def test_a_flag_that_a_command_has_itself_is_no_other_servers() -> None:
    assert parse(("adapter", "check", "path", "--model", "m")).model == "m"


def test_flags_that_are_said_to_be_the_same_are_the_same() -> None:
    same = [name for rows in TABLES.values() for row in rows if row.ours == SAME for name in row.names]
    assert set(same) <= OURS


def test_none_of_our_own_flags_is_explained_as_anothers() -> None:
    assert [flag for flag in sorted(OURS - {"--config", "--api-key"}) if explain(flag)] == ["--served-model-name"]


def test_a_key_of_another_server_in_the_file_is_explained(tmp_path: Path) -> None:
    config = tmp_path / "g.toml"
    config.write_text("max-num-seqs = 8\n")
    with pytest.raises(SettingsError, match=r"^max_num_seqs in .*g.toml: --max-num-seqs is a flag of vLLM; here it is"):
        load_settings({}, {}, config)


def test_variables_of_other_servers_are_explained_but_not_those_that_their_clients_read() -> None:
    told = explain_variables(
        ["OLLAMA_NUM_PARALLEL", "OLLAMA_HOST", "OLLAMA_MODELS", "LLAMA_ARG_N_PARALLEL", "HF_HOME", "HOME", "tmp_x"]
    )
    assert told == [
        "LLAMA_ARG_N_PARALLEL is a variable of llama.cpp; here it is GREENROOM_MAX_RUNNING_REQUESTS",
        "OLLAMA_NUM_PARALLEL is a variable of Ollama; here it is --max-running-requests",
    ]
