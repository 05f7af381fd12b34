"""Imports torch and transformers without the parts that a server does not need."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from expert_store import CheckpointError, read_metadata

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads that spin take cores from computing threads
    # Each caches 1,024 shapes of matrix products by default. Steps differ in rows, so the caches only fill up.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
NEEDED = ("transformers.modeling_utils", "transformers.masking_utils", "transformers.generation.utils")
COMPILER = "torch._dynamo"
WALKER, WALK = "transformers.utils.import_utils", "create_import_structure_from_path"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators that only the compiler reads


def set_up_torch(model: str | None) -> None:
    """Import torch and transformers without the parts that a server does not need, before anything else does.

    It leaves out torch's compiler, its distributed tensors and torchvision, about 80 MiB. A process that imports the
    compiler later gets it. If torchvision is installed and the model may take images, everything is imported.

    Args:
        model: the model of the command line; None is the bundled one.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if _takes_no_images(model):
        # Acts as if torchvision were not installed.
        sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    with _without_collection():
        if find_spec("torchvision") is None:
            _import_without_compiler()
        else:  # torchvision imports the compiler, and can't be imported twice
            for name in NEEDED:
                import_module(name)


def _import_without_compiler() -> None:
    try:
        with _with_one_walk(), _without_distributed(), _without_compiler():
            for name in NEEDED:
                import_module(name)
    except (ImportError, AttributeError) as error:
        log.info("importing torch's compiler as well, because this version of transformers needs it: %s", error)


def _takes_no_images(model: str | None) -> bool:
    """Return True if the model is on this machine, packed or not, and its config shows that it takes only text."""
    if model is None:
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
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _with_one_walk() -> Iterator[None]:
    """Make transformers read the files of its models once, which takes 0.3 s, and not twice.

    It caches what it finds in each folder, but in a cache with fewer places than there are models.
    """
    finder = _WalkerFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if finder.walk is not None:
            finder.walk.cache_clear()


class _WalkerFinder(MetaPathFinder):
    """Finds the module of transformers that reads the files of its models, and gives it a cache of any size."""

    walk: Any = None

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == WALKER else None
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        execute = spec.loader.exec_module

        def execute_and_widen(module: ModuleType) -> None:
            execute(module)
            bounded: Any = getattr(module, WALK, None)
            if hasattr(bounded, "__wrapped__"):
                self.walk = cache(bounded.__wrapped__)
                setattr(module, WALK, self.walk)

        spec.loader.exec_module = execute_and_widen  # type: ignore[method-assign]
        return spec


@contextmanager
def _without_distributed() -> Iterator[None]:
    """Make transformers see a torch built without distributed; transformers checks once and caches the result."""
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
    """Let modules decorate functions for torch's compiler without importing it."""
    spec = find_spec(COMPILER)
    if spec is None or COMPILER in sys.modules:
        yield
        return
    package = _Decorators(COMPILER)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules[COMPILER] = package
    try:
        yield
    finally:
        del sys.modules[COMPILER]  # later imports get the real compiler


class _Decorators(ModuleType):
    """A stand-in for torch's compiler that has only its decorators."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _mark
        raise AttributeError(f"{self.__name__}.{name} is needed")


def _mark(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _mark if function is None else function
