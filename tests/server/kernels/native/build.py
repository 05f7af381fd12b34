"""The build of the native kernels, as in setup.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[4]
DRIVER = Path(__file__).with_name("driver")  # folder of its sources
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
FLAGS = ("-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", *SANITIZERS)
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


def build_sanitized_driver(setup: ModuleType, folder: Path) -> Path:
    """Compile the kernels and the driver with sanitizers; objects of the kernels that did not change are kept.

    Args:
        setup: what ``load_setup`` returned.

    Raises:
        setup.BuildFailure: nothing can be compiled with sanitizers.
    """
    sources, compiler = ROOT / setup.SOURCES, setup.Compiler(FLAGS)
    (folder / "empty.cpp").write_text("int main() {}\n")
    compiler.run(*SANITIZERS, str(folder / "empty.cpp"), "-o", str(folder / "empty"))
    objects = compiler.objects(sources, ROOT / "build" / "sanitized")
    compiler.flags += ["-I", str(sources)]
    objects += compiler.objects(DRIVER, folder / "objects")
    compiler.link(objects, folder / "driver", SANITIZERS)
    return folder / "driver"
