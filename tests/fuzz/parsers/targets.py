"""The parsers: each takes any bytes, and refuses what it can't use by its own error and no other.

A target returns if the parser does what it should, and raises anything else if not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import xxhash
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from expert_store import CheckpointError, ExpertStoreError, find_shards, is_pack, open_pack, read_index
from expert_store.io.safetensors_index import INDEX_NAME, is_header_only, read_header_metadata
from expert_store.packed.journal import HEADER, Journal
from expert_store.packed.manifest import FORMAT, MANIFEST_NAME, VERSION, named_folder, read_manifest
from server.api.admin.adapters import AdapterName, AdapterPath
from server.api.admin.experts import ExpertsBody
from server.api.admin.variants import VariantBody
from server.api.anthropic.body import MessagesBody, PromptBody
from server.api.core.errors.api_errors import APIError
from server.api.core.json_text.reader import JSONError, read_json
from server.api.core.service.body import parse
from server.api.ollama.embed import EmbeddingsRequest, EmbedRequest
from server.api.ollama.generation_bodies import ChatRequest, GenerateRequest
from server.api.openai.bodies import ChatBody, CompletionBody, GenerationBody
from server.api.openai.embeddings import EmbeddingBody
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.scoring_bodies import RerankBody, ScoreBody
from server.api.openai.tokenization import DetokenizeBody, TokenizeBody
from server.model.adapters.errors import AdapterError
from server.model.checkpoint.config_checks import check_files
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.generation_config import read_generation_config
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.lora.peft_config import read_peft_config
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.quantised.scheme import quantisation_beside_config
from server.settings import SettingsError, load_settings

BODIES: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        AdapterName,
        AdapterPath,
        ChatBody,
        ChatRequest,
        CompletionBody,
        DetokenizeBody,
        EmbedRequest,
        EmbeddingBody,
        EmbeddingsRequest,
        ExpertsBody,
        GenerateRequest,
        MessagesBody,
        PromptBody,
        RerankBody,
        ResponsesBody,
        ScoreBody,
        TokenizeBody,
        VariantBody,
    )
}
MODULES = ("self_attn.q_proj", "model.layers.0.self_attn.q_proj", "mlp.experts.gate_up_proj", "")

_folder = Path(mkdtemp(prefix="greenroom-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def _write(name: str, data: bytes) -> Path:
    path = _folder / name
    path.write_bytes(data)
    return path


def _json(data: bytes) -> None:
    """The reader takes nothing that Python's does not take, and reads the same."""
    try:
        value = read_json(data)
    except JSONError:
        return
    assert value == json.loads(data)


def _bodies(data: bytes) -> None:
    """The first line names the kind of the body."""
    name, _, text = data.partition(b"\n")
    model = BODIES.get(name.decode("latin-1"))
    if model is None:
        return
    with suppress(APIError, RequestValidationError):
        body = parse(bytearray(text), model)
        if isinstance(body, GenerationBody):
            assert body.grammar_spec is None or body.grammar_spec.text is not None


def _safetensors(data: bytes) -> None:
    """Every tensor of the index lies in the file."""
    path = _write("model.safetensors", data)
    with suppress(CheckpointError):
        is_header_only(path)
        for source in read_index([path]).values():
            assert 0 <= source.extent.offset <= source.extent.offset + source.extent.nbytes <= len(data)
            assert source.extent.nbytes == math.prod(source.shape) * source.dtype.itemsize
    with suppress(CheckpointError):
        read_header_metadata(path)


def _gguf(data: bytes) -> None:
    """Every tensor lies in the file; config, tokenizer and places of tensors are made, or refused."""
    name = _write("model.gguf", data).name
    checkpoint = GgufCheckpoint(_folder, name)
    with suppress(CheckpointError, ModelError):
        for tensor in GgufFile.open(_folder, name).tensors.values():
            extent = tensor.source.extent
            assert 0 <= extent.offset <= extent.offset + extent.nbytes <= len(data)
    for read in (checkpoint.read_config, checkpoint.load_tokenizer, checkpoint.generation_values):
        with suppress(CheckpointError, ModelError):
            read()
    with suppress(CheckpointError, ModelError):
        assert all(shape for shape in (each.shape for each in checkpoint._tensors.values()))


def _index(data: bytes) -> None:
    """The shards lie in the folder."""
    path = _write(INDEX_NAME, data)
    try:
        with suppress(CheckpointError):
            assert all(Path(shard.name).parent == _folder for shard in find_shards(_folder))
    finally:
        path.unlink()


def _manifest(data: bytes) -> None:
    """A manifest's checksum does not help against who can compute it, as this target does."""
    with suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict):
            content = {"format": FORMAT, "version": VERSION, **content}
            content.pop("checksum", None)
            plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
            data = json.dumps(content | {"checksum": xxhash.xxh3_64_hexdigest(plain)}).encode()
    path = _write(MANIFEST_NAME, data)
    try:
        for data_folder, files in named_folder(_folder).items():
            assert all(Path(name).name == name for name in (data_folder, *files))
        with suppress(CheckpointError):
            manifest = read_manifest(_folder)
            assert all(Path(name).name == name for name in (manifest.data, *manifest.files))
        if is_pack(_folder):
            with suppress(CheckpointError):
                open_pack(_folder)
    finally:
        path.unlink()


def _journal(data: bytes) -> None:
    """A journal names nothing outside its folder, for what it names may be removed."""
    journal = Journal(_write(".journal", HEADER + data))
    for folder, files in journal.folders.items():
        assert all(Path(name).name == name and name not in {"", ".", ".."} for name in (folder, *files)), folder
    assert all(key.layer >= 0 and key.expert >= 0 for key in journal.finished)


def _adapter(data: bytes) -> None:
    """The patterns of an adapter's configuration match names."""
    path = _write("adapter_config.json", data)
    with suppress(AdapterError):
        config = read_peft_config(path)
        for module in MODULES:
            assert config.rank_of(module) > 0
            config.scale_of(module, config.rank_of(module))


def _config(data: bytes) -> None:
    """The first line names the file."""
    name, _, text = data.partition(b"\n")
    parsers: dict[bytes, Callable[[Path], Any]] = {
        b"config.json": read_config,
        b"generation_config.json": lambda folder: read_generation_config(FolderCheckpoint(folder)),
        b"hf_quant_config.json": quantisation_beside_config,
        b"tokenizer_config.json": check_files,
        b"special_tokens_map.json": check_files,
    }
    if name not in parsers:
        return
    path = _write(name.decode(), text)
    try:
        with suppress(ExpertStoreError, ModelError):
            parsers[name](_folder)
    finally:
        path.unlink()


def _settings(data: bytes) -> None:
    with suppress(SettingsError):
        load_settings({}, {}, _write("settings.toml", data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "adapter": _adapter,
    "bodies": _bodies,
    "config": _config,
    "gguf": _gguf,
    "index": _index,
    "journal": _journal,
    "json": _json,
    "manifest": _manifest,
    "safetensors": _safetensors,
    "settings": _settings,
}
CORPUS = Path(__file__).parent / "corpus"


def run(name: bytes, data: bytes) -> None:
    """Run one target."""
    TARGETS[name.decode()](data)
