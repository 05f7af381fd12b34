"""Models are found in a local store of Ollama, and read where they lie."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from expert_store import CheckpointError
from server.cli import verify
from server.model.checkpoint.generation_config import read_generation_config
from server.model.checkpoint.locate import find_local
from server.model.checkpoint.ollama_store import VARIABLE, find_manifest
from server.model.errors import ModelError
from server.model.opening.ollama_checkpoint import OllamaCheckpoint
from server.model.opening.open_checkpoint import open_checkpoint
from tests.gguf.models import FILES
from tests.gguf.ollama_store import add_model
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import rewrite

FILE = FILES / "qwen3moe.gguf"
LIBRARY = "registry.ollama.ai/library"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "model"),
    [
        (f"{LIBRARY}/tiny/30b", "tiny:30b"),
        (f"{LIBRARY}/tiny/latest", "tiny"),
        ("registry.ollama.ai/somebody/tiny/latest", "somebody/tiny"),
        ("hf.co/somebody/tiny-GGUF/Q4_K_M", "hf.co/somebody/tiny-GGUF:Q4_K_M"),
    ],
)
def test_a_model_is_found_by_the_name_that_ollama_gives_it(store: Path, place: str, model: str) -> None:
    manifest = add_model(store, FILE, place)
    assert find_local(f"ollama:{model}") == (manifest, model if ":" in model else f"{model}:latest")


def test_a_store_is_in_the_home_folder_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = add_model(tmp_path / ".ollama" / "models", FILE)
    assert find_manifest("ollama:tiny:30b") == manifest


def test_an_unknown_model_lists_what_there_is(store: Path) -> None:
    add_model(store, FILE)
    add_model(store, FILE, "hf.co/somebody/other/Q8_0")
    with pytest.raises(ModelError, match=r"no tiny:7b .*, but hf\.co/somebody/other:Q8_0, tiny:30b; .*ollama pull"):
        find_local("ollama:tiny:7b")


def test_a_store_without_models_names_its_folder(store: Path) -> None:
    with pytest.raises(ModelError, match=f"no models of Ollama in {store}; set {VARIABLE}"):
        find_local("ollama:tiny")


@pytest.mark.parametrize("name", ["", "..:latest", "../../../blobs:latest", "a/b/c/d", "tiny:../30b", "tiny:"])
def test_a_name_never_leads_out_of_the_store(store: Path, name: str) -> None:
    (store / "manifests" / LIBRARY).mkdir(parents=True)
    with pytest.raises(ModelError, match="Ollama"):
        find_local(f"ollama:{name}")


def test_the_file_is_read_where_it_lies_with_the_parameters_of_the_manifest(store: Path) -> None:
    parameters = {"stop": ["<|im_end|>", "USER:"], "temperature": 0.5, "repeat_penalty": 1.25, "num_ctx": 4096}
    texts = {"params": json.dumps(parameters), "license": "Apache", "projector": "clip"}
    checkpoint = open_checkpoint(add_model(store, FILE, texts=texts))
    assert Path(checkpoint.location).parent == store / "blobs"
    generation = read_generation_config(checkpoint)
    assert generation.stops == ("<|im_end|>", "USER:")
    assert generation.sampling == {"temperature": 0.5, "repetition_penalty": 1.25}
    assert checkpoint.describe().licence == "Apache"
    notes = " ".join(checkpoint.notes())
    assert all(told in notes for told in ("Go's language", "images are not read", "parameters num_ctx are not used"))


def test_a_dense_model_is_refused_by_its_name(store: Path, tmp_path: Path) -> None:
    file = rewrite(tmp_path / "dense.gguf", changes={"general.architecture": "starcoder2"})
    checkpoint = open_checkpoint(add_model(store, file))
    with pytest.raises(ModelError, match="ollama:tiny:30b is a model of the architecture starcoder2"):
        checkpoint.read_config()


def test_a_missing_blob_is_named(store: Path) -> None:
    manifest = add_model(store, FILE)
    blob = Path(OllamaCheckpoint(manifest).location)
    blob.unlink()
    with pytest.raises(CheckpointError, match=f"ollama:tiny:30b lacks its blob {blob}; run `ollama pull tiny:30b`"):
        open_checkpoint(manifest)


@pytest.mark.parametrize("content", ["{}", "[]", '{"layers": [{}]}', '{"layers": [{"mediaType": "a", "digest": "b"}]}'])
def test_a_damaged_manifest_is_named(store: Path, content: str) -> None:
    manifest = add_model(store, FILE)
    manifest.write_text(content)
    with pytest.raises(CheckpointError, match=f"{manifest}.* `ollama pull tiny:30b`"):
        open_checkpoint(manifest)


def test_a_model_with_an_adapter_is_refused(store: Path) -> None:
    with pytest.raises(ModelError, match="ollama:tiny:30b is a model with an adapter"):
        open_checkpoint(add_model(store, FILE, texts={"adapter": "lora"}))


def test_a_model_that_is_no_gguf_file_is_refused(store: Path) -> None:
    manifest = add_model(store, FILE)
    manifest.write_text(manifest.read_text().replace("image.model", "image.tensor"))
    with pytest.raises(ModelError, match="ollama:tiny:30b has 0 GGUF files, not one"):
        open_checkpoint(manifest)


def test_verify_compares_blobs_with_their_digests(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = Path(OllamaCheckpoint(add_model(store, FILE)).location)
    assert verify.run(Namespace(pack=Path("ollama:tiny:30b"), logits=False)) == 0
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert verify.run(Namespace(pack=Path("ollama:tiny:30b"), logits=False)) == 1
    assert f"1 of 2 blobs of tiny:30b are damaged: {blob.name}" in capsys.readouterr().err
