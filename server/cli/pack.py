"""`greenroom pack`: write a model in the packed format."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.exit_status import FAILURE, INTERRUPTED, exit_on_interrupt, fail, finish
from server.lifecycle.torch_setup import set_up_torch
from server.model.checkpoint.local_files import check_model
from server.model.errors import ModelError
from server.observability.logging import COMMAND, set_up_logging

if TYPE_CHECKING:
    from expert_store import PackSource
    from server.model.checkpoint.weight_formats import StoredFormat

log = logging.getLogger(__name__)

WEIGHTS = ("bfloat16", "int8", "int4", "unchanged")
TRUNKS = ("unchanged", "int8", "int4")
UNFINISHED = "interrupted; run the same command again to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder of a checkpoint, GGUF file or ollama:NAME")
    parser.add_argument(
        "out",
        type=_folder,
        metavar="OUT",
        help="folder to write to: new, empty, or from an interrupted or earlier run; or s3://, gs:// or az:// of one",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="weight format of the experts (default: bfloat16; unchanged if those of a GGUF file are quantised)",
    )
    parser.add_argument(
        "--trunk",
        choices=TRUNKS,
        default=TRUNKS[0],
        help="weight format of the trunk's linear layers (default: unchanged)",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="experts to convert in parallel (default: number of cores)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--config-from",
        metavar="MODEL",
        help="folder or hub id of the model that a GGUF file was made from, whose config and tokenizer count",
    )


def run(arguments: argparse.Namespace) -> int:
    """Pack a model, and return the exit status."""
    try:
        check_model(arguments.model)
    except ModelError as error:
        return fail(error, FAILURE)
    set_up_torch(arguments.model)  # takes seconds; --help should not wait
    import torch  # noqa: PLC0415

    from expert_store import ExpertStoreError  # noqa: PLC0415
    from server.model.checkpoint.description import PLAIN  # noqa: PLC0415
    from server.model.checkpoint.locate import find_checkpoint, find_original  # noqa: PLC0415
    from server.model.model_building import build_model  # noqa: PLC0415
    from server.model.opening.open_checkpoint import open_checkpoint  # noqa: PLC0415
    from server.model.opening.packing import pack_source  # noqa: PLC0415
    from server.model.transformers_output import silence_transformers  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    set_up_logging("info", COMMAND)
    silence_transformers()
    torch.set_num_threads(1)  # each job is a thread
    try:
        with exit_on_interrupt(UNFINISHED):
            place, name = find_checkpoint(arguments.model, arguments.revision)
        checkpoint = open_checkpoint(place, find_original(arguments.config_from))
        stored = checkpoint.describe()
        is_quantised = stored.format == "gguf" and stored.weights not in PLAIN.values()
        weights: StoredFormat = arguments.weights or ("unchanged" if is_quantised else "bfloat16")
        if is_quantised and weights != "unchanged":
            log.warning(
                "%s has weights in %s, and --weights %s rounds them again; leave it out to keep them",
                name,
                stored.weights,
                weights,
            )
        model = build_model(checkpoint.read_config(), torch.bfloat16)
        source = pack_source(model, checkpoint, name, weights, arguments.trunk)
        with progress(f"packing {name} as {weights}", source.record_bytes) as shown:
            is_new = _write(source, arguments.out, arguments.jobs, shown.advance)
    except (ModelError, ExpertStoreError) as error:
        return fail(error, FAILURE)
    except KeyboardInterrupt:
        return finish(UNFINISHED, INTERRUPTED)
    if not is_new:
        return finish(f"{arguments.out} already holds this packed model, and all its checksums match", 0)
    return finish(f"packed {name} as {weights} into {arguments.out}", 0)


def _write(source: PackSource, out: str, num_jobs: int, advance: Callable[[int], None]) -> bool:
    """Write a pack to a folder, or to object storage from a temporary one; return False if it was there."""
    from expert_store import write_pack  # noqa: PLC0415
    from expert_store.packed.manifest import MANIFEST_NAME  # noqa: PLC0415
    from server.model.checkpoint.remote.addresses import is_storage  # noqa: PLC0415
    from server.model.checkpoint.remote.bucket import upload  # noqa: PLC0415

    if not is_storage(out):
        return write_pack(source, Path(out), num_jobs, advance)
    with tempfile.TemporaryDirectory(prefix="greenroom-") as folder:
        write_pack(source, Path(folder) / "pack", num_jobs, advance)
        upload(Path(folder) / "pack", out, MANIFEST_NAME)
    return True


def _folder(text: str) -> str:
    if text.lower().endswith(".gguf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a folder, and Greenroom writes no GGUF; give a folder, or make a GGUF file with "
            "llama.cpp's convert_hf_to_gguf.py and llama-quantize"
        )
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of jobs; give 1 or more")
    return int(text)
