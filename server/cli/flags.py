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
    "threads",
)


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(ServeSettings.model_fields)) -> None:
    """Add a flag for each of some settings. Values stay text until all settings are validated together."""
    for name in names:
        field = ServeSettings.model_fields[name]
        if field.annotation is bool:
            parser.add_argument(flag_name(name), action="store_true", default=argparse.SUPPRESS, help=field.description)
            continue
        if is_list(name):
            parser.add_argument(
                flag_name(name),
                action="append",
                default=argparse.SUPPRESS,
                metavar=METAVARS.get(name, name.split("_")[-1].upper()),
                help=f"{field.description}; may be repeated",
            )
            continue
        default = "" if field.default is None else f" (default: {field.default})"
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        given_alone: dict[str, Any] = {"nargs": "?", "const": "on"} if choices and "on" in choices else {}
        metavar = "{" + ",".join(choices) + "}" if choices else METAVARS.get(name, name.split("_")[-1].upper())
        parser.add_argument(
            flag_name(name),
            default=argparse.SUPPRESS,
            metavar=metavar,
            help=f"{field.description}{default}",
            **given_alone,
        )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="read settings from a file")
