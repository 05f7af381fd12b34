"""Imports: the layers of the packages, and modules that load no torch."""

from __future__ import annotations

import logging
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def _loggers() -> Iterator[None]:
    """Enable the loggers again that import-linter disables, for other tests of this process."""
    enabled = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    enabled = [each for each in enabled if not each.disabled]
    yield
    for logger in enabled:
        logger.disabled = False


@pytest.mark.usefixtures("_loggers")
def test_packages_import_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    """pyproject.toml has the layers."""
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def members(package: str) -> list[str]:
    return [package, *(found.name for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."))]


IMPORT_UNTIL_TORCH = """
import sys
from importlib import import_module

for name in sys.argv[1:]:
    import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
"""


def test_bookkeeping_is_free_of_torch() -> None:
    torch_free = [
        "expert_store",
        "expert_store.keys",
        "expert_store.errors",
        "expert_store.entry",
        "expert_store.slot_queue",
        "expert_store.tier",
        "expert_store.store_lock",
        "expert_store.statistics",
        "expert_store.routing_log.recent_window",
        "expert_store.routing_log.log",
        "expert_store.routing_log.replay",
        "expert_store.packed.fingerprint",
        "expert_store.packed.journal",
        *members("expert_store.policies"),
        "expert_store.prefetching.coactivation",
        "expert_store.prefetching.governor",
        "expert_store.prefetching.prefetcher",
        "server.engine.scheduler",
        "server.engine.sequence",
        *members("server.engine.admission"),
        "server.engine.kv.prefix_cache_ids",
        "server.model.step",
        "server.engine.kv.block_manager",
        "server.engine.kv.block_pool",
        *members("server.engine.interface"),
        "server.model.stalls",
        "server.engine.sampling.random_numbers",
        "server.engine.sampling.grammar",
        "server.engine.sampling.json_grammar",
        "server.engine.sampling.sampling_state",
        "server.engine.text.stop_strings",
        "server.engine.text.detokenizer",
        "server.model.checkpoint.local_files",
        "server.model.text.token_bytes",
        "server.engine.kv.state_snapshots",
        "server.inspection.throughput_bound",
    ]
    command = [sys.executable, "-c", IMPORT_UNTIL_TORCH, *torch_free]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
