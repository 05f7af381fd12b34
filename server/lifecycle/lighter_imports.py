"""Imports parts of torch and transformers without what a server does not need; each part can be imported later."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import FrameType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
META_KERNELS = "torch._meta_registrations"
WALKER, WALK, LIST_OF_NAMES = "transformers.utils.import_utils", "create_import_structure_from_path", "fetch__all__"
COMPILER_UTILS = "torch._dynamo.utils"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators that only the compiler reads


class _ImportHook(MetaPathFinder):
    """Finds one module, and calls a function with it and the function that executes it, when it is imported."""

    def __init__(self, name: str, execute: Callable[[ModuleType, Callable[[ModuleType], None]], None]):
        self._name = name
        self._execute = execute

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._name else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._execute(module, execute)  # type: ignore[method-assign]
        return spec


def import_torch() -> None:
    """Import torch without its kernels in Python for the meta device, which take a third of the time of its import.

    The kernels in C++ are enough to build models. The others are imported before the compiler, which needs them.
    """
    if "torch" in sys.modules:
        return
    sys.modules[META_KERNELS] = ModuleType(META_KERNELS)
    try:
        import_module("torch")
    finally:
        del sys.modules[META_KERNELS]
    if not _can_make_generators():
        import_module(META_KERNELS)
    _check_without_symbols()
    sys.meta_path.insert(0, _ImportHook(COMPILER, _with_meta_kernels))


def _check_without_symbols() -> None:
    """Let ``torch._check`` accept True without SymPy, whose import takes 35 MiB and 0.4 s.

    Models of transformers that take images call it in their first step.
    """
    import torch  # noqa: PLC0415

    check = getattr(torch, "_check_with", None)
    if check is None:  # a version of torch that checks otherwise
        return

    def check_with(error_type: type[Exception], cond: Any, message: Callable[[], str]) -> None:
        if cond is not True:
            check(error_type, cond, message)

    torch._check_with = check_with  # noqa: SLF001


def _can_make_generators() -> bool:
    """Give random generators the class that torch gives them with these kernels; return True if they can be made."""
    import torch  # noqa: PLC0415

    with suppress(ImportError, AttributeError, RuntimeError):
        opaque: Any = import_module("torch._opaque_base")
        torch._C._set_generator_metaclass(opaque.OpaqueBaseMeta)  # noqa: SLF001
    try:
        torch.Generator()
    except RuntimeError:
        return False
    return True


def _with_meta_kernels(module: ModuleType, execute: Callable[[ModuleType], None]) -> None:
    import_module(META_KERNELS)
    execute(module)


@contextmanager
def with_quick_frames() -> Iterator[None]:
    """Find the module of a frame by its globals; Python resolves the paths of all modules to find it by its file.

    Torch asks for it with each operation in Python that it registers.
    """
    by_file = inspect.getmodule

    def by_globals(of: object, *names: Any, **options: Any) -> ModuleType | None:
        return (module_of(of) if isinstance(of, FrameType) else None) or by_file(of, *names, **options)

    inspect.getmodule = by_globals  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getmodule = by_file


def module_of(frame: FrameType) -> ModuleType | None:
    """Return the imported module whose code runs in a frame; None for code that is no module's."""
    module = sys.modules.get(frame.f_globals.get("__name__", ""))
    return module if module is not None and vars(module) is frame.f_globals else None


@contextmanager
def with_quick_walk() -> Iterator[None]:
    """Make transformers read the files of its models once and quickly, not twice and line by line.

    It caches what it finds in each folder, but in a cache with fewer places than there are models.
    """
    walks = list[Any]()

    def execute_and_replace(module: ModuleType, execute: Callable[[ModuleType], None]) -> None:
        execute(module)
        bounded: Any = getattr(module, WALK, None)
        if hasattr(bounded, "__wrapped__"):
            walks.append(cache(bounded.__wrapped__))
            setattr(module, WALK, walks[0])
        if hasattr(module, LIST_OF_NAMES):
            setattr(module, LIST_OF_NAMES, from_last_list(getattr(module, LIST_OF_NAMES)))

    hook = _ImportHook(WALKER, execute_and_replace)
    sys.meta_path.insert(0, hook)
    try:
        yield
    finally:
        sys.meta_path.remove(hook)
        for walk in walks:
            walk.cache_clear()


def from_last_list(read: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """Return transformers' reader of the last ``__all__`` in a file, but one that begins at it."""
    return lambda content: read(content[content.rfind("\n__all__") + 1 :])


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Hide packages that transformers imports if they are installed; it checks once and caches the result."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def without_distributed() -> Iterator[None]:
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
def without_compiler() -> Iterator[None]:
    """Let modules decorate functions for torch's compiler without importing it."""
    spec = find_spec(COMPILER)
    if spec is None or COMPILER in sys.modules:
        yield
        return
    package = _Decorators(COMPILER)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules[COMPILER], sys.modules[COMPILER_UTILS] = package, _Utils(COMPILER_UTILS)
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    """Let later imports get the real compiler."""
    for name, kind in ((COMPILER, _Decorators), (COMPILER_UTILS, _Utils)):
        if isinstance(sys.modules.get(name), kind):
            del sys.modules[name]


class _Decorators(ModuleType):
    """A stand-in for torch's compiler that has only its decorators."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _mark
        raise AttributeError(f"{self.__name__}.{name} is needed")


class _Utils(ModuleType):
    """A stand-in for the compiler's utilities that has what torchvision imports; imports the compiler for the rest.

    A failed import of torchvision can't be repeated, because it registers its operations with torch.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "is_compile_supported":
            return _is_compile_supported
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__}.{name} is needed")
        _remove_stand_ins()
        return getattr(import_module(COMPILER_UTILS), name)


def _is_compile_supported(device_type: str) -> bool:  # noqa: ARG001  torchvision asks for each kind of device
    return False


def _mark(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _mark if function is None else function
