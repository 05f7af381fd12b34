"""The command `greenroom` with models on a web server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME
from tests.e2e.processes import Server, run_command, serving
from tests.gguf.models import FILES
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import rewrite
from tests.web_server import FileServer, file_server

PROMPT: dict[str, Any] = {
    "prompt": "Who may apply",
    "max_tokens": 12,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}
FEW = ("--host-expert-memory", "25%")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    folder = tmp_path_factory.mktemp("web")
    shutil.copytree(BUNDLED, folder / BUNDLED_NAME)
    shutil.copy(FILES / "qwen3moe.gguf", folder)
    with file_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def served(web: FileServer) -> Iterator[Server]:
    with serving(f"{web.url}/{BUNDLED_NAME}/", *FEW, "--prefetch", "off") as server:
        yield server


def complete(server: Server, model: str = BUNDLED_NAME, prompt: str = PROMPT["prompt"]) -> str:
    return server.client().completions.create(model=model, **{**PROMPT, "prompt": prompt}).choices[0].text


def failure_of(server: Server, model: str = BUNDLED_NAME, prompt: str = PROMPT["prompt"]) -> str:
    try:
        complete(server, model, prompt)
    except openai.APIStatusError as error:
        return str(error)
    return ""


def test_a_folder_gives_the_text_of_the_same_files_on_a_disk_before_all_of_it_was_sent(
    web: FileServer, served: Server
) -> None:
    with serving(*FEW) as local:
        assert complete(served) == complete(local) != ""
    with web.lock:
        extents = [
            asked.removeprefix("bytes=").split("-") for path, asked in web.requests if path.endswith(".safetensors")
        ]
    seen = {(int(begin), int(end)) for begin, end in extents}
    nbytes = (BUNDLED / "model.safetensors").stat().st_size
    assert sum(end - begin for begin, end in seen) < 0.8 * nbytes


def test_misses_are_counted_as_remote(served: Server) -> None:
    complete(served)
    usage = served.client().completions.create(model=BUNDLED_NAME, **{**PROMPT, "prompt": "ACT I. SCENE"}).usage
    cost = usage.greenroom  # type: ignore[union-attr]
    assert cost["expert_remote_bytes"] == cost["expert_bytes_read"] > 0
    text = httpx.get(f"{served.url}/metrics").text
    assert 'greenroom_expert_lookups_total{phase="decode",tier="remote"}' in text
    assert 'tier="disk"' not in text


def test_a_model_that_goes_away_fails_requests_by_name_and_works_when_it_comes_back(
    web: FileServer, served: Server
) -> None:
    before = complete(served)
    file = web.folder / BUNDLED_NAME / "model.safetensors"
    file.rename(file.with_suffix(".away"))
    failure = next(filter(None, (failure_of(served) for _ in range(8))), "")  # once it needs an expert not in memory
    assert re.search(r"expert \d+ of layer \d can't be read; see the log", failure)
    file.with_suffix(".away").rename(file)
    assert complete(served) == before


def test_a_gguf_file_is_served_by_its_address(web: FileServer) -> None:
    with serving(f"{web.url}/qwen3moe.gguf") as remote, serving(str(FILES / "qwen3moe.gguf")) as local:
        assert complete(remote, "qwen3moe") == complete(local, "qwen3moe")


def test_no_line_of_the_log_has_the_password_of_an_address(web: FileServer) -> None:
    """Httpx logs the addresses that it requests."""
    url = web.url.replace("//", "//me:swordfish@")
    with serving(f"{url}/qwen3moe.gguf", "--log-level", "debug") as server:
        _, out, err = server.interrupt()
    assert f"HTTP Request: GET {web.url.replace('//', '//***@')}/qwen3moe.gguf" in err
    assert "swordfish" not in out + err


def test_inspect_reads_headers_alone(web: FileServer) -> None:
    shutil.copytree(BUNDLED, web.folder / "inspected")
    result = run_command("inspect", f"{web.url}/inspected")
    assert result.returncode == 0, result.stderr
    assert "96 in 6 layers" in result.stdout
    sent = [asked for path, asked in web.requests if path == "/inspected/model.safetensors"]
    assert sum(int(end) - int(begin) for begin, end in (each[6:].split("-") for each in sent)) < 200_000


def test_an_address_without_a_model_is_refused_in_one_sentence(web: FileServer) -> None:
    result = run_command("inspect", f"{web.url}/nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("greenroom: ")
    assert "nowhere has no config.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gguf_file_of_several_splits_is_served_by_the_address_of_any(web: FileServer) -> None:
    rewrite(web.folder / "split.gguf", split=10)
    name = max(path.name for path in web.folder.glob("split-*.gguf"))
    result = run_command("inspect", f"{web.url}/{name}")
    assert result.returncode == 0, result.stderr
