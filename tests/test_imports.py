"""Who may import whom: seven floors without a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each room may import of ours besides itself; a room is the longest prefix that is named here.
ALLOWED = {
    "client": set(),
    "expert_store": set(),
    "server.settings": set(),
    "server.memory.sizes": set(),
    "server.memory": {
        "expert_store",
        "server.engine.block_manager",
        "server.engine.extents",
        "server.engine.scheduler",
        "server.memory.sizes",
        "server.model.kv_cache",
        "server.settings",
    },
    "server.progress": {"server.memory.sizes"},
    "server.observability.logging": set(),
    "server.kernels": set(),
    "server.routing_trace": {"expert_store"},
    "server.demo": set(),
    "server.demo.traces": {"expert_store", "server.demo", "server.model"},
    "server.observability": {"expert_store", "server.memory"},
    "server.model": {"expert_store", "server.kernels", "server.memory.sizes", "server.progress"},
    "server.adapters": {"expert_store", "server.model", "server.kernels"},
    "server.engine": {"expert_store", "server.heap", "server.model", "server.adapters", "server.observability"},
    "server.api": {"server.engine.request", "server.heap"},
    "server.device": {"server.settings"},
    "server.administration": {"expert_store", "server.engine.request", "server.memory", "server.observability"},
    "server.loading": {
        "expert_store",
        "server.administration",
        "server.device",
        "server.engine",
        "server.kernels",
        "server.model",
        "server.observability",
        "server.memory",
        "server.routing_trace",
        "server.settings",
    },
    "server.connections": {"server.settings"},
    "server.doors": {"server.api", "server.settings"},
    "server.draining": {"server.api"},
    "server.http_protocol": set(),
    "server.tracing": {"server.observability.logging", "server.observability.tracing", "server.settings"},
    "server.app": {
        "server.api",
        "server.connections",
        "server.doors",
        "server.draining",
        "server.http_protocol",
        "server.loading",
        "server.settings",
        "server.tracing",
    },
    "server.complaint": set(),
    "server.torch_setup": set(),
    "server.heap": set(),
    "server.inspection": {
        "expert_store",
        "server.device",
        "server.kernels.native.available",
        "server.memory",
        "server.model",
        "server.settings",
    },
    "server.inspect_command": {
        "expert_store",
        "server.complaint",
        "server.inspection",
        "server.model.errors",
        "server.observability.logging",
        "server.settings",
        "server.torch_setup",
    },
    "server.doctor": {
        "expert_store",
        "server.complaint",
        "server.connections",
        "server.device",
        "server.inspection",
        "server.kernels",
        "server.memory",
        "server.model",
        "server.observability.logging",
        "server.settings",
        "server.torch_setup",
    },
    "server.pack_command": {
        "expert_store",
        "server.complaint",
        "server.model",
        "server.observability.logging",
        "server.progress",
    },
    "server.verify_command": {
        "expert_store",
        "server.complaint",
        "server.memory.sizes",
        "server.observability.logging",
        "server.progress",
    },
    "server.replay": {"expert_store", "server.complaint", "server.settings"},
    "server.serve_command": {
        "expert_store",
        "server.app",
        "server.complaint",
        "server.model.errors",
        "server.observability.logging",
        "server.progress",
        "server.settings",
        "server.torch_setup",
    },
    "server.cli": {"server.complaint"},  # its subcommands by name, when they are asked for
}
OURS = ("client", "expert_store", "server")


def modules() -> Iterator[tuple[str, Path]]:
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Absolute names of everything of ours that a module imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ALLOWED), None)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_run_one_way(module: str, path: Path) -> None:
    home = room(module)
    if home is None:
        assert path.read_text("utf-8").strip().count("\n") <= 1, f"{module} belongs to no room"
        return
    for name in imports(module, path):
        if name.split(".")[0] in OURS and room(name) != home:
            assert any(name == door or name.startswith(f"{door}.") for door in ALLOWED[home]), (
                f"{module} may not import {name}"
            )


def test_bookkeeping_is_free_of_torch() -> None:
    torch_free = [
        "expert_store/keys.py",
        "expert_store/tier.py",
        "expert_store/window.py",
        "expert_store/trace.py",
        "expert_store/packed/fingerprint.py",
        "expert_store/packed/journal.py",
        "expert_store/packed/folder.py",
        "expert_store/replay.py",
        *(f"expert_store/policies/{path.name}" for path in (ROOT / "expert_store/policies").glob("*.py")),
        "expert_store/coactivation.py",
        "expert_store/governor.py",
        "expert_store/prefetch.py",
        "server/model/runs.py",
        "server/engine/block_manager.py",
        "server/engine/block_pool.py",
        "server/engine/stage.py",
        "server/engine/working_set.py",
        "server/engine/scheduler.py",
        *(f"server/engine/request/{path.name}" for path in (ROOT / "server/engine/request").glob("*.py")),
        "server/model/stalls.py",
        "server/engine/draws.py",
        "server/engine/grammar.py",
        "server/engine/json_grammar.py",
        "server/engine/sampling_state.py",
        "server/engine/text.py",
        "server/engine/detokenizer.py",
        "server/model/token_bytes.py",
        "server/engine/sequence.py",
        "server/engine/snapshots.py",
        "server/inspection/bound.py",
    ]
    for name in torch_free:
        found = [imported for imported in imports("x", ROOT / name) if imported.split(".")[0] == "torch"]
        assert not found, f"{name} imports {found}"
