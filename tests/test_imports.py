"""Who may import whom: seven floors without a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each room may import of ours besides itself; a room is the longest prefix that is named here.
ALLOWED = {
    "client": set(),
    "expert_store": set(),
    "server.setting_values": set(),
    "server.settings": {"server.setting_values"},
    "server.memory.byte_sizes": set(),
    "server.memory": {
        "expert_store",
        "server.engine.kv.block_manager",
        "server.engine.kv.extents",
        "server.engine.scheduler",
        "server.memory.byte_sizes",
        "server.model.attention.kv_cache",
        "server.setting_values",
        "server.settings",
    },
    "server.progress": {"server.memory.byte_sizes"},
    "server.observability.logging": set(),
    "server.kernels": set(),
    "server.observability.routing_recorder": {"expert_store"},
    "server.demo": set(),
    "server.demo.traces": {"expert_store", "server.demo", "server.model"},
    "server.observability": {"expert_store", "server.memory"},
    "server.model": {"expert_store", "server.kernels", "server.memory.byte_sizes", "server.progress"},
    "server.adapters": {"expert_store", "server.model", "server.kernels"},
    "server.engine": {"expert_store", "server.memory.heap", "server.model", "server.adapters", "server.observability"},
    "server.api.core": {"server.engine.interface", "server.memory.heap"},
    "server.api.middleware": {"server.api.core", "server.engine.interface"},
    "server.api.tool_parsers": {"server.api.core", "server.engine.interface"},
    "server.api.operations": {"server.api.core"},
    "server.api.admin": {"server.api.core", "server.engine.interface"},
    "server.api.openai": {"server.api.core", "server.api.tool_parsers", "server.engine.interface"},
    "server.api.anthropic": {"server.api.core", "server.api.openai", "server.engine.interface"},
    "server.api": {
        "server.api.admin",
        "server.api.anthropic",
        "server.api.core",
        "server.api.middleware",
        "server.api.openai",
        "server.api.operations",
        "server.engine.interface",
    },
    "server.device": {"server.settings"},
    "server.administration": {"expert_store", "server.engine.interface", "server.memory", "server.observability"},
    "server.loading": {
        "expert_store",
        "server.administration",
        "server.device",
        "server.engine",
        "server.kernels",
        "server.model",
        "server.observability",
        "server.memory",
        "server.observability.routing_recorder",
        "server.settings",
    },
    "server.lifecycle.listening_socket": {"server.settings"},
    "server.lifecycle.service_setup": {"server.api", "server.settings"},
    "server.lifecycle.draining": {"server.api"},
    "server.lifecycle.http_protocol": set(),
    "server.lifecycle.tracing_setup": {"server.observability.logging", "server.observability.otlp", "server.settings"},
    "server.lifecycle.app": {
        "server.api",
        "server.lifecycle.listening_socket",
        "server.lifecycle.service_setup",
        "server.lifecycle.draining",
        "server.lifecycle.http_protocol",
        "server.loading",
        "server.settings",
        "server.lifecycle.tracing_setup",
    },
    "server.cli.exit_status": set(),
    "server.cli.flags": {"server.settings"},
    "server.lifecycle.torch_setup": set(),
    "server.memory.heap": set(),
    "server.inspection": {
        "expert_store",
        "server.device",
        "server.kernels.native.available",
        "server.memory",
        "server.model",
        "server.settings",
    },
    "server.cli.inspect": {
        "expert_store",
        "server.cli.exit_status",
        "server.cli.flags",
        "server.inspection",
        "server.model.errors",
        "server.observability.logging",
        "server.settings",
        "server.lifecycle.torch_setup",
    },
    "server.doctor": {
        "expert_store",
        "server.lifecycle.listening_socket",
        "server.device",
        "server.inspection",
        "server.kernels",
        "server.memory",
        "server.model",
        "server.setting_values",
        "server.settings",
    },
    "server.cli.pack": {
        "expert_store",
        "server.cli.exit_status",
        "server.model",
        "server.observability.logging",
        "server.progress",
    },
    "server.cli.verify": {
        "expert_store",
        "server.cli.exit_status",
        "server.memory.byte_sizes",
        "server.observability.logging",
        "server.progress",
    },
    "server.cli.doctor": {
        "server.cli.exit_status",
        "server.cli.flags",
        "server.doctor",
        "server.observability.logging",
        "server.settings",
        "server.lifecycle.torch_setup",
    },
    "server.cli.replay": {"expert_store", "server.cli.exit_status", "server.replay"},
    "server.replay": {"expert_store", "server.setting_values"},
    "server.cli.serve": {
        "expert_store",
        "server.lifecycle.app",
        "server.cli.exit_status",
        "server.cli.flags",
        "server.model.errors",
        "server.observability.logging",
        "server.progress",
        "server.settings",
        "server.lifecycle.torch_setup",
    },
    "server.cli.__main__": {"server.cli.main"},
    "server.cli.main": {"server.cli.exit_status"},  # its subcommands by name, when they are asked for
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


def members(package: str) -> list[str]:
    return [name for name, _ in modules() if name == package or name.startswith(f"{package}.")]


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
        "server.model.experts.stalls",
        "server.engine.sampling.random_numbers",
        "server.engine.sampling.grammar",
        "server.engine.sampling.json_grammar",
        "server.engine.sampling.sampling_state",
        "server.engine.text.stop_strings",
        "server.engine.text.detokenizer",
        "server.model.text.token_bytes",
        "server.engine.kv.state_snapshots",
        "server.inspection.throughput_bound",
    ]
    command = [sys.executable, "-c", IMPORT_UNTIL_TORCH, *torch_free]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
