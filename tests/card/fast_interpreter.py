"""Makes Triton's interpreter take about 0.6 of its time: it keeps types and shapes instead of building them anew.

This replaces private parts of Triton, and was tested with its versions 3.7.1 and 3.9.0. Where one has other parts, or
objects with other attributes, its own parts stay, and the tests take longer.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import triton
from triton.language import core
from triton.runtime import interpreter

log = logging.getLogger(__name__)

REPLACED = {  # each part, and the names of its arguments
    "_get_np_dtype": ("tt_dtype",),
    "_patch_lang": ("fn",),
    "InterpretedFunction.__call__": ("self", "args", "kwargs"),
    "InterpretedFunction.run": ("self", "args", "grid", "warmup", "kwargs"),
    "InterpretedFunction.rewrite": ("self",),
    "tl.core.block_type.__init__": ("self", "element_ty", "shape"),
    "tl.core.tensor.__init__": ("self", "handle", "type"),
}
OF_TENSOR = {"handle", "type", "dtype", "numel", "shape"}  # its attributes


@cache
def install(*, checks_overflow: bool = True) -> None:
    """Replace what the interpreter calls most.

    Args:
        checks_overflow: False for models that are too small for offsets to exceed 32 bits.
    """
    unknown = find_unknown(interpreter)
    if unknown is not None:
        log.warning("Triton %s is interpreted as it is, slower: it has another %s", triton.__version__, unknown)
        return
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=checks_overflow)
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    make_block = core.block_type.__init__
    blocks: dict[Any, dict[str, Any]] = {}

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = type(element_ty), element_ty.name, _numbers(shape)
        if key in blocks:
            vars(self).update(blocks[key])
        else:
            make_block(self, element_ty, shape)
            blocks[key] = dict(vars(self))

    def init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002  its name there
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = _constants(_numbers(type.shape) if type.is_block() else ())

    core.block_type.__init__, core.tensor.__init__ = init_block, init_tensor
    _replace_the_language_once()


def find_unknown(module: Any) -> str | None:
    """Return the part of Triton's interpreter that is not as it was in the versions that were tested; None if all are.

    Args:
        module: ``triton.runtime.interpreter``.
    """
    for name, arguments in REPLACED.items():
        part: Any = module
        for each in name.split("."):
            part = getattr(part, each, None)
        if part is None or tuple(inspect.signature(part).parameters) != arguments:
            return name
    if not hasattr(getattr(module, "interpreter_builder", None), "options"):
        return "interpreter_builder.options"
    if not hasattr(module.interpreter_builder.options, "sanitize_overflow"):
        return "option sanitize_overflow"
    language = module.tl.core
    if vars(language.tensor(None, language.block_type(language.float32, [2]))).keys() != OF_TENSOR:
        return "set of attributes of a tensor"
    return None


def _replace_the_language_once() -> None:
    """Let functions of a kernel replace the language once in a run of it, not each time that they are called."""
    run_whole, replaced = interpreter.InterpretedFunction.run, set()

    def call(self: Any, *args: Any, **options: Any) -> Any:
        names = id(self.fn.__globals__)
        if names not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(names)
        return self.rewrite()(*args, **options)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        replaced.clear()
        return run_whole(self, *args, grid=grid, warmup=warmup, **options)

    interpreter.InterpretedFunction.run, interpreter.InterpretedFunction.__call__ = run, call


def _by_name(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[tuple[type[Any], str], Any] = {}

    def get(given: Any) -> Any:
        key = type(given), given.name
        if key not in known:
            known[key] = function(given)
        return known[key]

    return get


def _numbers(shape: Any) -> tuple[int, ...]:
    return tuple([each.value if isinstance(each, core.constexpr) else each for each in shape])


@cache
def _constants(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the number of elements of a shape and the shape, as constants of a kernel."""
    return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(size) for size in shape])
