"""The file that ``serve deploy`` takes: written for a model, and read for a local cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from server.cluster.options import ClusterOptions
from server.settings import SettingsError

IMPORT_PATH = "server.cluster.application:build"
NAME = "greenroom"
KEEP_ALIVE_SECONDS = 75  # of idle connections, longer than most load balancers keep them
NEEDS_RAY = "replicas run on Ray Serve, which is not installed; run `pip install 'greenroom[ray]'`"
HEADER = """\
# greenroom cluster run FILE.yaml      a cluster on this machine, to try it
# serve deploy FILE.yaml               a Ray cluster that runs; whoever reaches its dashboard may run code, so set
#                                      RAY_AUTH_MODE=token for all its commands, and --dashboard-host=127.0.0.1
# docs/scaling.md has the variables that make streams cheaper
"""


def describe(options: ClusterOptions, host: str, port: int) -> dict[str, Any]:
    """Return the content of the file for an application."""
    given = options.model_dump(exclude_defaults=True) | {"memory": options.memory, "replicas": options.replicas}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_SECONDS},
        "logging_config": {"enable_access_log": False},  # the server writes one of its own, without queries
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": given | {"address": host}}
        ],
    }


def write(content: Mapping[str, Any]) -> str:
    """Return the file as YAML, with what to do with it."""
    return HEADER + str(yaml.safe_dump(dict(content), sort_keys=False))


def read(path: Path) -> tuple[dict[str, Any], ClusterOptions]:
    """Read a file, and check the options of its application.

    Raises:
        SettingsError: it can't be used.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    applications = content.get("applications") if isinstance(content, dict) else None
    listed = applications if isinstance(applications, list) else []
    found = [each for each in listed if isinstance(each, dict) and each.get("import_path") == IMPORT_PATH]
    if len(found) != 1:
        raise SettingsError(
            f"{path} has no application with import_path {IMPORT_PATH}; `greenroom cluster config` prints such a file"
        )
    args = found[0].get("args") or {}
    if not isinstance(args, dict):
        raise SettingsError(f"{path}: args must be names with values, such as memory: 12GiB")
    try:
        options = ClusterOptions.checked(args)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return content, options
