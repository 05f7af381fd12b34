"""The command `greenroom` with GGUF files, of this machine and of the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from tests.e2e.hub import serving_hub, wait_for
from tests.e2e.processes import Server, run_command, serving
from tests.gguf.models import FILES, TEMPLATE, make_checkpoint
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import Q4_0, rewrite

REPOSITORY = "somebody/tiny-GGUF"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one repository, of which one is in several files."""
    made = tmp_path_factory.mktemp("repository")
    shutil.copy(FILES / "qwen3moe.gguf", made / "tiny-BF16.gguf")
    rewrite(made / "tiny-Q4_0.gguf", Q4_0, split=10)
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with serving(str(folder / "tiny-BF16.gguf")) as server:
        yield server


def test_a_file_is_served_to_the_openai_client_as_its_model(served: Server) -> None:
    reply = served.client().chat.completions.create(
        model="tiny-BF16", messages=[{"role": "user", "content": "the theatre"}], max_tokens=8, temperature=0
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 8


def test_ollamas_client_is_told_what_the_file_holds(served: Server) -> None:
    with ollama.Client(served.url) as client:
        (listed,), shown = client.list().models, client.show("tiny-BF16")
    for details in (listed.details, shown.details):
        assert details is not None
        assert (details.format, details.family, details.quantization_level) == ("gguf", "qwen3moe", "BF16")
        assert details.parameter_size == "56K"
    assert shown.template == TEMPLATE
    assert shown.modelinfo is not None
    assert shown.modelinfo["qwen3moe.expert_count"] == 4


def test_openais_client_is_told_what_the_file_holds(served: Server) -> None:
    (card,) = served.client().models.list()
    meta = card.model_dump()["meta"]
    assert (meta["format"], meta["architecture"], meta["quantization"]) == ("gguf", "qwen3moe", "BF16")


def test_a_tag_of_the_hub_downloads_the_files_of_one_model(folder: Path, hub_cache: Path) -> None:
    splits = [path.name for path in folder.glob("*Q4_0*")]
    with serving_hub(REPOSITORY, folder) as hub:
        environment = hub.environment(hub_cache)
        with serving(f"{REPOSITORY}:q4_0", environment=environment) as server:
            assert server.ready_line.endswith(f"(model {REPOSITORY}:q4_0)")
            wait_for(lambda: all(hub.is_in_cache(hub_cache, name) for name in splits))
        assert {name for name in hub.sent if name} == set(splits)
    with serving(f"{REPOSITORY}:Q4_0", environment={**environment, "HF_HUB_OFFLINE": "1"}):
        pass


def test_config_and_tokenizer_come_from_the_original_on_the_hub_without_its_weights(tmp_path: Path) -> None:
    original = make_checkpoint("qwen3moe", tmp_path / "original")
    file = rewrite(tmp_path / "tiny.gguf", changes={"tokenizer.ggml.pre": "no-such"})
    with serving_hub("somebody/tiny", original) as hub:
        flags = ("--config-from", "somebody/tiny")
        with serving(str(file), *flags, environment=hub.environment(tmp_path)) as server:
            reply = server.client().completions.create(model="tiny", prompt="the theatre", max_tokens=4)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert "tokenizer.json" in hub.sent
    assert not any(name.endswith(".safetensors") for name in hub.sent)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (REPOSITORY, f"has GGUF files of BF16, Q4_0; give one, such as {REPOSITORY}:BF16"),
        (f"{REPOSITORY}:Q6_K", "has no GGUF file of Q6_K, but of BF16, Q4_0"),
    ],
)
def test_an_absent_or_unknown_tag_lists_what_there_is(folder: Path, tmp_path: Path, name: str, reason: str) -> None:
    with serving_hub(REPOSITORY, folder) as hub:
        result = run_command("serve", name, "--port", "0", environment=hub.environment(tmp_path))
    assert result.returncode == 1
    assert reason in result.stderr


def test_inspect_says_what_the_file_holds(folder: Path) -> None:
    result = run_command("inspect", str(folder))
    assert result.returncode == 1
    assert "holds 2 models in the GGUF format; give one" in result.stderr
    found = run_command("inspect", str(folder / "tiny-Q4_0-00001-of-00003.gguf"))
    assert found.returncode == 0, found.stderr
    assert "from its GGUF file" in found.stdout


def test_a_file_on_the_hub_is_inspected_by_its_headers(folder: Path, tmp_path: Path) -> None:
    with serving_hub(REPOSITORY, folder) as hub:
        found = run_command("inspect", f"{REPOSITORY}:Q4_0", "--json", environment=hub.environment(tmp_path))
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    local = json.loads(run_command("inspect", str(folder / "tiny-Q4_0-00001-of-00003.gguf"), "--json").stdout)
    assert report["source"] == "gguf-headers"
    assert all(report[key] == local[key] for key in ("experts", "trunk_bytes", "bytes_per_token", "trunk_format"))
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_pack_of_a_file_is_served_as_its_model(folder: Path, tmp_path: Path) -> None:
    result = run_command("pack", str(folder / "tiny-Q4_0-00001-of-00003.gguf"), str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "packed tiny-Q4_0 as unchanged" in result.stdout + result.stderr
    with serving(str(tmp_path / "out")) as server:
        assert server.ready_line.endswith("(model tiny-Q4_0)")


def test_a_pack_in_another_format_warns_that_weights_are_rounded_again(folder: Path, tmp_path: Path) -> None:
    result = run_command("pack", str(folder / "tiny-Q4_0-00001-of-00003.gguf"), str(tmp_path), "--weights=int8")
    assert result.returncode == 0, result.stderr
    assert "weights in BF16+Q4_0, and --weights int8 rounds them again; leave it out" in result.stderr
