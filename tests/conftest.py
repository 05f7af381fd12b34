"""Settings and marks of all tests."""

import ctypes
import gc
import hashlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from tests.nightly import is_nightly

# As the server sets it, before torch is imported: threads that spin while they wait take cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Without a GPU, Triton interprets its kernels on the CPU. It reads this when it is imported, as torch does by itself.
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# An extra of jsonschema for IRIs, which nothing here has; its import builds a grammar for two seconds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# Both workers and each command that a test starts import the same hundreds of modules: compile them once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("greenroom", deadline=None, max_examples=40)  # a busy machine is no failure
settings.register_profile("long", deadline=None, max_examples=2000)  # by --hypothesis-profile, as `make fuzz` does
settings.load_profile("greenroom")

MARKS = {  # by folder; elsewhere tests that take more than 0.2 s of a processor, all cases together, are slow
    "e2e": pytest.mark.slow,
    "e2e/dashboard": pytest.mark.browser,
    "fuzz": pytest.mark.slow,
    "soak": pytest.mark.slow,
}

# What takes longest. It runs first, so that at the end no worker waits for another's long file.
LONG = (
    "e2e/test_memory.py",
    "fuzz",
    "soak",
    "server/kernels/native/test_sanitizers.py",
    "server/model/test_families.py",
    "server/model/native_layers/test_native_layers.py",
    "e2e",
    "faults",
)

CACHES = tempfile.TemporaryDirectory(prefix="greenroom-tests-", ignore_cleanup_errors=True)  # of users, by test

IS_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that are slow as a whole without importing them, if `-m "not slow"` asks for the others."""
    if config.option.markexpr != "not slow" or not collection_path.name.startswith("test_"):
        return None
    is_slow = any(_is_in(collection_path, folder) for folder, mark in MARKS.items() if mark.name == "slow")
    return is_slow or IS_SLOW.search(collection_path.read_text()) is not None or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without collections of garbage, which would look at ever more modules and tests that stay.

    Tests make many objects and few cycles, so it is collected seldom: by default that takes a twentieth of the time.

    Then let torch run on one thread, as several workers share the cores: with two there are three times as many
    switches between threads. Commands that tests start, and tests that set a number, have theirs.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        gc.enable()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a folder and those that CI leaves out, and sort them."""
    items.sort(key=lambda item: [not _is_in(item.path, place) for place in LONG])
    for item in items:
        for folder, mark in MARKS.items():
            if _is_in(item.path, folder):
                item.add_marker(mark)
        if is_nightly(item):
            item.add_marker(pytest.mark.nightly)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what twins show apart from other tests, as some change what modules compute."""
    folder = hashlib.sha256(item.nodeid.encode()).hexdigest()[:16]
    os.environ["XDG_CACHE_HOME"] = str(Path(CACHES.name) / folder)


@cache  # of some thousand tests in a few hundred files
def _is_in(path: Path, place: str) -> bool:
    return f"{path}/".startswith(f"{Path(__file__).parent}/{place}/")
