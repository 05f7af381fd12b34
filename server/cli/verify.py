"""`greenroom verify`: compares a model's files with checksums, or its logits with those of transformers' modules."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.cli.exit_status import FAILURE, exit_on_interrupt, fail, finish
from server.cli.flags import add_flags
from server.cli.model_settings import load_model_settings
from server.lifecycle.torch_setup import set_up_torch
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SettingsError

MOST_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pack",
        metavar="MODEL",
        type=Path,
        help="folder written by greenroom pack, or a copy of it; a GGUF file; or ollama:NAME",
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="compare the model as it is served with transformers' modules, layer by layer; it may be any local model",
    )
    add_flags(parser, ("config_from", "dtype"))
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --logits)")


def run(arguments: argparse.Namespace) -> int:
    """Verify a model, and return the exit status."""
    return _verify_logits(arguments) if arguments.logits else _verify_files(arguments.pack)


def _verify_files(path: Path) -> int:
    # torch takes seconds to import; --help should not wait
    from expert_store import ExpertStoreError, is_pack  # noqa: PLC0415
    from server.model.checkpoint.local_files import find_gguf, local_files  # noqa: PLC0415
    from server.model.checkpoint.ollama_store import find_manifest, is_ollama  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    set_up_logging("info", COMMAND)
    try:
        if is_ollama(str(path)):
            return _verify_ollama(find_manifest(str(path)))
        if not path.exists():
            return finish(f"there is no {path}; give a folder written by greenroom pack, or a GGUF file", FAILURE)
        if is_pack(path):
            return _verify_pack(path)
        file = find_gguf(str(path), local_files(str(path)) or [])
        if file is not None:
            return _verify_gguf(file)
    except (ExpertStoreError, ModelError, OSError) as error:
        return fail(error, FAILURE)
    return finish(
        f"{path} is not a packed model, and has no checksums; give a folder written by greenroom pack, or a GGUF file",
        FAILURE,
    )


def _verify_logits(arguments: argparse.Namespace) -> int:
    arguments.model = str(arguments.pack)
    settings = load_model_settings(arguments)
    if isinstance(settings, int):
        return settings
    set_up_logging("warning", COMMAND)
    set_up_torch(None)
    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.loading.logits_comparison import compare_logits  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415

    try:
        with exit_on_interrupt("interrupted"):
            found = compare_logits(arguments.model, settings)
    except (ModelError, ExpertStoreError, SettingsError, OSError) as error:
        return fail(error, FAILURE)
    print(json.dumps(found.as_object()) if arguments.json else found.as_text(), flush=True)
    return 0


def _verify_pack(folder: Path) -> int:
    from expert_store import open_pack, unreadable_experts  # noqa: PLC0415
    from server.byte_sizes import format_bytes  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    with exit_on_interrupt("interrupted"):
        catalog = open_pack(folder).catalog
        with progress(f"verifying {folder}", catalog.total_bytes) as shown:
            damaged = unreadable_experts(catalog, shown.advance)
    num_experts = sum(catalog.layouts.values())
    if not damaged:
        return finish(f"{folder} is undamaged: {num_experts} experts, {format_bytes(catalog.total_bytes)}", 0)
    return _finish_damaged(f"{len(damaged)} of {num_experts} experts of {folder}", damaged)


def _verify_ollama(path: Path) -> int:
    from server.byte_sizes import format_bytes  # noqa: PLC0415
    from server.model.checkpoint.ollama_store import damaged_blobs, read_ollama_manifest  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    with exit_on_interrupt("interrupted"):
        manifest = read_ollama_manifest(path)
        total = sum(blob.stat().st_size for blob in manifest.blobs.values())
        with progress(f"verifying {manifest.name}", total) as shown:
            damaged = damaged_blobs(manifest, shown.advance)
    if damaged:
        return _finish_damaged(f"{len(damaged)} of {len(manifest.blobs)} blobs of {manifest.name}", damaged)
    return finish(f"{manifest.name} is undamaged: {len(manifest.blobs)} blobs, {format_bytes(total)}", 0)


def _verify_gguf(path: Path) -> int:
    from expert_store import FileName  # noqa: PLC0415
    from server.byte_sizes import format_bytes  # noqa: PLC0415
    from server.model.checkpoint.gguf.gguf_file import GgufFile  # noqa: PLC0415
    from server.model.checkpoint.gguf.verification import damaged_tensors  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    with exit_on_interrupt("interrupted"):
        file = GgufFile.open(path.parent, FileName(path.name))
        total = sum(tensor.source.extent.nbytes for tensor in file.tensors.values())
        with progress(f"verifying {path}", total) as shown:
            damaged = damaged_tensors(file, shown.advance)
    if damaged:
        return _finish_damaged(f"{len(damaged)} of {len(file.tensors)} tensors of {path}", damaged)
    return finish(
        f"{path} can be used: {len(file.tensors)} tensors, {format_bytes(total)}; the format has no checksums, so "
        "compare it with that of its download",
        0,
    )


def _finish_damaged(what: str, damaged: Mapping[Any, str]) -> int:
    names = ", ".join(map(str, list(damaged)[:MOST_NAMED])) + (", ..." if len(damaged) > MOST_NAMED else "")
    first = next(iter(damaged.values()))
    return finish(f"{what} are damaged: {names}; the first: {first}", FAILURE)
