"""Settings and marks of all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# As the server sets it, before torch is imported: threads that spin while they wait take cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("greenroom", deadline=None)  # a busy machine is no failure
settings.register_profile("long", deadline=None, max_examples=2000)  # by --hypothesis-profile
settings.load_profile("greenroom")

MARKS = {  # by folder
    "e2e": pytest.mark.slow,
    "e2e/dashboard": pytest.mark.browser,
    "faults": pytest.mark.slow,
    "fuzz": pytest.mark.slow,
    "soak": pytest.mark.slow,
    "server/live": pytest.mark.slow,
}

# Folders whose files take longest. They run first, so that at the end no worker waits for another's long file.
LONG = ("fuzz", "soak", "e2e", "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a folder, and sort them."""
    root = Path(__file__).parent
    items.sort(key=lambda item: [not item.path.is_relative_to(root / folder) for folder in LONG])
    for item in items:
        for folder, mark in MARKS.items():
            if item.path.is_relative_to(root / folder):
                item.add_marker(mark)
