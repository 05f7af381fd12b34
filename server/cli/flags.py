"""Command-line flags, made from the fields of the settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from server.settings import ServeSettings, flag_name, is_list

METAVARS = {
    "max_requests_per_key": "REQUESTS",
    "max_model_len": "TOKENS",
    "max_batched_tokens": "TOKENS",
    "model_alias": "NAME=MODEL",
    "adapter": "NAME=PATH",
    "chat_template": "FILE",
    "config_from": "MODEL",
    "chat_template_kwargs": "JSON",
    "generation_config": "SOURCE",
    "override_generation_config": "JSON",
    "variant": "NAME=PATH",
    "state": "FILE",
    "response_store": "DIR",
    "shutdown_timeout": "SECONDS",
    "stream_keep_alive": "SECONDS",
}

MOST_USED = (
    "host",
    "port",
    "api_key_file",
    "served_model_name",
    "device",
    "memory",
    "device_memory",
    "max_model_len",
    "max_running_requests",
)
# Those that are in no group are of the operation.
GROUPS = {
    "model": (
        "model_alias",
        "model_type",
        "revision",
        "config_from",
        "dtype",
        "chat_template",
        "chat_template_kwargs",
        "generation_config",
        "override_generation_config",
        "switch_capacity",
    ),
    "parts of the memory": ("host_expert_memory", "device_expert_memory", "kv_cache_memory", "adapter_memory"),
    "models elsewhere": ("disk_cache", "disk_cache_size", "complete_download"),
    "experts": (
        "repack_cache",
        "repack_cache_size",
        "cache_policy",
        "prefetch",
        "admission",
        "miss_compute",
        "trace_file",
    ),
    "adapters and variants": ("adapters_dir", "adapter", "load_adapters", "experts_dir", "variant", "state"),
    "computation": ("threads", "kernels", "max_batched_tokens", "prefill", "deterministic"),
    "requests": ("max_queued_requests", "strict_sampling", "stream_keep_alive", "log_prompts"),
    "stored responses": ("response_store", "response_store_size", "response_store_days"),
    "access": (
        "api_key",
        "admin_api_key",
        "admin_api_key_file",
        "policy_file",
        "max_requests_per_key",
        "rate_limit",
        "prefix_cache_isolation",
        "allowed_host",
        "allow_origin",
    ),
}

# Settings that decide how the memory is planned for a model.
PLANNING = (
    "revision",
    "config_from",
    "device",
    "dtype",
    "memory",
    "device_memory",
    "host_expert_memory",
    "device_expert_memory",
    "adapter_memory",
    "kv_cache_memory",
    "max_model_len",
    "max_running_requests",
    "max_batched_tokens",
    "prefill",
    "threads",
)


def add_all_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all settings, in groups. Values stay text until all settings are validated together."""
    most_used = parser.add_argument_group("most used")
    for name in MOST_USED:
        _add_flag(most_used, name)
    _add_config(most_used)
    grouped = {*MOST_USED, *(name for names in GROUPS.values() for name in names)}
    rest = [name for name in ServeSettings.model_fields if name not in grouped]
    for title, names in {**GROUPS, "operation": rest}.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_flag(group, name)


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the flags of some settings. Values stay text until all settings are validated together."""
    for name in names:
        _add_flag(parser, name)
    _add_config(parser)


def _add_config(container: argparse._ActionsContainer) -> None:
    container.add_argument("--config", type=Path, metavar="FILE.toml", help="read settings from a file")


def _add_flag(container: argparse._ActionsContainer, name: str) -> None:
    field = ServeSettings.model_fields[name]
    flag: dict[str, Any] = {"default": argparse.SUPPRESS, "help": field.description}
    if field.annotation is bool:
        container.add_argument(flag_name(name), action="store_true", **flag)
        return
    flag["metavar"] = METAVARS.get(name, name.rsplit("_", maxsplit=1)[-1].upper())
    if is_list(name):
        flag |= {"action": "append", "help": f"{field.description}; may be repeated"}
    elif field.default is not None:
        flag["help"] += f" (default: {field.default})"
    if get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        flag["metavar"] = "{" + ",".join(choices) + "}"
        if "on" in choices:  # the flag alone
            flag |= {"nargs": "?", "const": "on"}
    container.add_argument(flag_name(name), **flag)
