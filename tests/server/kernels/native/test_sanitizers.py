"""The native kernels under the address and undefined-behaviour sanitizers, at every level that this machine can run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .build import DRIVER, ROOT, load_setup

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
FLAGS = ("-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", *SANITIZERS)
# GCC 12 aligns frames of the heap to 32 bytes, where AVX-512 wants 64.
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
ROUNDS = 40


@pytest.mark.timeout(600)  # nearly all of it is compiling, of what has changed since the last time
def test_random_calls_are_right_and_break_no_rule_of_the_language(tmp_path: Path) -> None:
    setup = load_setup()
    try:
        compiler = setup.Compiler(FLAGS)
        (tmp_path / "empty.cpp").write_text("int main() {}\n")
        compiler.run(*SANITIZERS, str(tmp_path / "empty.cpp"), "-o", str(tmp_path / "empty"))
    except setup.BuildFailure as failure:
        pytest.skip(f"nothing can be compiled with sanitizers: {failure}")
    sources = ROOT / setup.SOURCES
    objects = compiler.objects(sources, ROOT / "build" / "sanitized")
    compiler.run(*compiler.flags, "-I", str(sources), "-c", str(DRIVER), "-o", str(tmp_path / "driver.o"))
    compiler.link([*objects, tmp_path / "driver.o"], tmp_path / "driver", SANITIZERS)
    driver = [str(tmp_path / "driver"), str(ROUNDS)]
    done = subprocess.run(driver, capture_output=True, text=True, check=False, env=os.environ | OPTIONS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "portable: 40 rounds\n" in done.stdout
