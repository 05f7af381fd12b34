"""The native kernels under the address and undefined-behaviour sanitizers, at every level that this machine can run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.server.kernels.native.build import DRIVER, ROOT, load_setup

pytestmark = pytest.mark.slow

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread")
FLAGS = ("-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", *SANITIZERS)
# GCC 12 aligns heap frames to 32 bytes, but AVX-512 needs 64.
OPTIONS = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
ROUNDS = 30


@pytest.mark.timeout(600)  # almost all of it compiles the sources that changed since the last run
def test_random_calls_are_right_and_have_no_undefined_behaviour(tmp_path: Path) -> None:
    setup = load_setup()
    sources = ROOT / setup.SOURCES
    try:
        compiler = setup.Compiler(FLAGS)
        (tmp_path / "empty.cpp").write_text("int main() {}\n")
        compiler.run(*SANITIZERS, str(tmp_path / "empty.cpp"), "-o", str(tmp_path / "empty"))
    except setup.BuildFailure as failure:
        pytest.skip(f"nothing can be compiled with sanitizers: {failure}")
    objects = compiler.objects(sources, ROOT / "build" / "sanitized")
    compiler.flags += ["-I", str(sources)]
    objects += compiler.objects(DRIVER, tmp_path / "objects")
    compiler.link(objects, tmp_path / "driver", SANITIZERS)
    driver = [str(tmp_path / "driver"), str(ROUNDS)]
    done = subprocess.run(driver, capture_output=True, text=True, check=False, env=os.environ | OPTIONS)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"portable: {ROUNDS} rounds\n" in done.stdout
