"""Sets up torch and transformers for a process that serves, before anything imports them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from those that compute
    # Each caches 1,024 shapes of products by default. Every step has another number of rows, so they only fill up.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
NEEDED = ("transformers.modeling_utils", "transformers.masking_utils", "transformers.generation.utils")
COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators that speak to the compiler alone


def set_up_torch(model: str | None) -> None:
    """Import torch and transformers without what no server needs; before anything else imports them.

    Left out are torch's compiler, its distributed tensors and torchvision, about 80 MiB. A process that asks for the
    compiler later gets it. Where torchvision is installed and the model may take images, all is imported.

    Args:
        model: as on the command line; None is the bundled one.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if _takes_no_images(model):
        # As if it were not installed.
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    if find_spec("torchvision") is not None:  # it asks for the compiler, and can't be imported twice
        return
    try:
        with _without_distributed(), _without_compiler():
            for name in NEEDED:
                import_module(name)
    except (ImportError, AttributeError) as error:
        log.info("torch's compiler is imported too, because this transformers needs it: %s", error)


def _takes_no_images(model: str | None) -> bool:
    """Whether the configs of a model on this machine, packed or not, tell that it is one of text alone."""
    if model is None:
        return True
    try:
        paths = [path for pattern in ("config.json", "*/config.json") for path in Path(model).glob(pattern)]
        return bool(paths) and not any("vision_config" in path.read_text("utf-8") for path in paths)
    except (OSError, ValueError):  # it can't be read, and will be refused
        return False


@contextmanager
def _without_distributed() -> Iterator[None]:
    """Let transformers believe in a torch built without distributed; it asks once, and keeps the answer."""
    import torch.distributed  # noqa: PLC0415  takes seconds
    from transformers.utils.import_utils import is_torch_distributed_available  # noqa: PLC0415

    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        is_torch_distributed_available()
        yield
    finally:
        torch.distributed.is_available = is_available


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let modules mark functions for torch's compiler without importing it."""
    spec = find_spec(COMPILER)
    if spec is None or COMPILER in sys.modules:
        yield
        return
    package = _Marks(COMPILER)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules[COMPILER] = package
    try:
        yield
    finally:
        del sys.modules[COMPILER]  # whoever asks from now on gets the real one


class _Marks(ModuleType):
    """Stands for torch's compiler while functions are marked for it; nothing else of it may be asked."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _mark
        raise AttributeError(f"{self.__name__}.{name} is asked for")


def _mark(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _mark if function is None else function
