"""The build of the native kernels, as in setup.py."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from server.kernels.native.available import availability

# Relative, as the paths are in the compiler's command, by which objects are found: checkouts share them.
ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[4]))
DRIVER = ROOT / "tests/server/kernels/native/driver"  # folder of its sources
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
FLAGS = ("-std=c++17", "-O0", "-g1", "-w", *SANITIZERS)  # a tenth of the time goes into warnings
# A signal instead of a report, and no checks of what ends in a signal by itself, or is never done here: both take time
# to compile. A failure is compiled again with all of them.
TRAPS = (
    "-fsanitize-undefined-trap-on-error",
    "-fno-sanitize=null,vptr,object-size,pointer-overflow,nonnull-attribute,returns-nonnull-attribute,return",
)
CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")  # GCC's: checks are calls, which compile faster
THREADS = ("-fsanitize=thread", "-pthread")
# GCC 12 aligns heap frames to 32 bytes, but AVX-512 needs 64.
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def load_setup() -> ModuleType:
    """Import setup.py as a module, without running setup."""
    spec = importlib.util.spec_from_file_location("greenroom_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_objects(setup: ModuleType, compiler: Any, folder: Path) -> list[Path]:
    """Compile the kernels; objects are in the folder where the user's cache can't have them."""
    return compiler.objects(ROOT / setup.SOURCES, includes(setup), setup.cache_folder(folder))


def driver_objects(setup: ModuleType, compiler: Any, folder: Path) -> list[Path]:
    """Compile the driver, as ``kernel_objects``."""
    return compiler.objects(DRIVER, [DRIVER, *includes(setup)], setup.cache_folder(folder))


def includes(setup: ModuleType) -> list[Path]:
    """Return the folders that names of the kernels' headers begin in."""
    return [ROOT / each for each in setup.INCLUDES]


def build_driver(setup: ModuleType, folder: Path) -> Path:
    """Compile the driver, and link it with the objects of the library.

    Raises:
        setup.BuildFailure: nothing can be compiled.
    """
    objects = kernel_objects(setup, setup.Compiler(), folder)
    objects += driver_objects(setup, setup.Compiler(("-std=c++17", "-O0", "-w")), folder)
    setup.Compiler().link(objects, folder / "driver", ("-pthread",))
    return folder / "driver"


def build_sanitized_driver(setup: ModuleType, folder: Path, *, has_reports: bool = True) -> Path:
    """Compile the kernels and the driver with sanitizers; objects of what did not change are kept.

    Levels that this machine can't run are left out: each takes a tenth of the time.

    Args:
        setup: what ``load_setup`` returned.
        has_reports: whether undefined behaviour is described, not only a signal.

    Raises:
        setup.BuildFailure: nothing can be compiled with sanitizers.
    """
    compiler = setup.Compiler(FLAGS if has_reports else (*FLAGS, *TRAPS))
    compiler.flags += CALLS if compiler.knows(CALLS) else ()
    for level in set(compiler.levels) - set(availability().runnable or compiler.levels):
        del compiler.levels[level]
        compiler.flags.append(f"-DGREENROOM_NO_{level.upper()}")
    (folder / "empty.cpp").write_text("int main() {}\n")
    compiler.run(*SANITIZERS, str(folder / "empty.cpp"), "-o", str(folder / "empty"))
    objects = kernel_objects(setup, compiler, folder) + driver_objects(setup, compiler, folder)
    compiler.link(objects, folder / "driver", SANITIZERS)
    return folder / "driver"


def build_thread_driver(setup: ModuleType, folder: Path) -> Path:
    """Compile the kernels and the driver with the thread sanitizer, with the portable level alone.

    Raises:
        setup.BuildFailure: nothing can be compiled with it.
    """
    compiler = setup.Compiler(("-std=c++17", "-O1", "-g1", "-w", *THREADS))
    for level in set(compiler.levels) - {"portable"}:
        del compiler.levels[level]
        compiler.flags.append(f"-DGREENROOM_NO_{level.upper()}")
    objects = kernel_objects(setup, compiler, folder) + driver_objects(setup, compiler, folder)
    compiler.link(objects, folder / "driver", THREADS)
    return folder / "driver"
