"""Imports torch and transformers without the parts that a server does not need."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from expert_store import CheckpointError, read_metadata
from server.collection import without_collection
from server.lifecycle.lighter_imports import (
    import_torch,
    with_quick_frames,
    with_quick_walk,
    without_compiler,
    without_distributed,
    without_modules,
)
from server.model.checkpoint.local_files import is_gguf

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads that spin take cores from computing threads
    # Each caches 1,024 shapes of matrix products by default. Steps differ in rows, so the caches only fill up.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
NEEDED = ("transformers.modeling_utils", "transformers.masking_utils", "transformers.generation.utils")


def set_up_torch(model: str | None) -> None:
    """Import torch and transformers without the parts that a server does not need, before anything else does.

    It leaves out torch's compiler, its kernels in Python for the meta device, its distributed tensors and Triton, about
    100 MiB, and torchvision unless the model may take images. A process that imports the compiler later gets it.

    Args:
        model: the model whose images may be processed; None: the bundled one, which takes none, or no images.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if _takes_no_images(model):
        # Acts as if torchvision were not installed.
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    with _without_collection(), with_quick_frames(), without_modules("boto3", "scipy", "sklearn", "triton"):
        _import_without_compiler()


def _import_without_compiler() -> None:
    try:
        import_torch()
        if find_spec("torchvision") is not None:
            with without_compiler():
                import_module("torchvision.transforms.v2")
        with with_quick_walk(), without_distributed(), without_compiler():
            for name in NEEDED:
                import_module(name)
    except (ImportError, AttributeError) as error:
        log.info("importing torch's compiler as well, because this version of transformers needs it: %s", error)


def _takes_no_images(model: str | None) -> bool:
    """Return True if the model is a GGUF file, or is on this machine and its config shows that it takes only text."""
    if model is None or is_gguf(model):
        return True
    try:
        paths = [path for pattern in ("config.json", "*/config.json") for path in Path(model).glob(pattern)]
        return bool(paths) and not any(b"vision_config" in read_metadata(path) for path in paths)
    except (OSError, ValueError, CheckpointError):  # the model can't be read, and will be refused later
        return False


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python's garbage collector from visiting a million objects that stay, again and again, and at the end."""
    if NEEDED[-1] in sys.modules:
        yield
        return
    with without_collection():
        try:
            yield
        finally:
            gc.freeze()
