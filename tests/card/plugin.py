"""A pytest plugin (``-p tests.card.plugin``) that runs tests on the card, and writes what it saw to ``CARD_REPORT``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.card import counts
from tests.card.runtime import install

install(num_devices=2)


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = {
        "passed": session.testscollected - session.testsfailed,
        "launches": sum(counts.launches.values()),
        "syncs": counts.syncs,
        "races": counts.races,
        "captured": sorted(counts.captured),
    }
    Path(os.environ["CARD_REPORT"]).write_text(json.dumps(report))
