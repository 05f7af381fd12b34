"""`greenroom pack`: write a model in the packed format."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from server.complaint import FAILURE, INTERRUPTED, complain, ending_at_once, say
from server.observability.logging import COMMAND, set_up_logging

WEIGHTS = ("bfloat16", "int8", "int4")
TRUNKS = ("unchanged", "int8", "int4")
UNFINISHED = "interrupted; the same command goes on from here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id or local checkpoint folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; new, empty, or of an earlier pack")
    parser.add_argument("--weights", choices=WEIGHTS, default="bfloat16", help="format of the experts (bfloat16)")
    parser.add_argument(
        "--trunk", choices=TRUNKS, default=TRUNKS[0], help="format of the linear layers beside them (unchanged)"
    )
    parser.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="experts at a time (number of cores)"
    )
    parser.add_argument("--revision", help="hub revision")


def run(arguments: argparse.Namespace) -> int:
    """Pack a model; the exit status."""
    # torch takes seconds that --help should not
    import torch  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from expert_store import ExpertStoreError, write_pack  # noqa: PLC0415
    from server.model.checkpoint import find_checkpoint  # noqa: PLC0415
    from server.model.errors import ModelError  # noqa: PLC0415
    from server.model.loading import build_model, read_config  # noqa: PLC0415
    from server.model.packing import pack_source  # noqa: PLC0415
    from server.progress import progress  # noqa: PLC0415

    set_up_logging("info", COMMAND)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)  # a job is a thread
    try:
        with ending_at_once(UNFINISHED):
            folder, name = find_checkpoint(arguments.model, arguments.revision)
        model = build_model(read_config(folder), torch.bfloat16)
        source = pack_source(model, folder, name, arguments.weights, arguments.trunk)
        with progress(f"packing {name} as {arguments.weights}", source.record_bytes) as shown:
            is_new = write_pack(source, arguments.out, arguments.jobs, shown.advance)
    except (ModelError, ExpertStoreError) as error:
        return complain(error, FAILURE)
    except KeyboardInterrupt:
        return say(UNFINISHED, INTERRUPTED)
    if not is_new:
        return say(f"{arguments.out} holds this pack already, and every record of it is sound", 0)
    return say(f"packed {name} as {arguments.weights} into {arguments.out}", 0)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    return int(text)
