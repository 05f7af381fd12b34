"""`greenroom cluster`: replicas on Ray Serve, on this machine or described for a cluster."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from server.byte_sizes import format_bytes
from server.cli.exit_status import FAILURE, WRONG_USAGE, fail, finish
from server.cli.flags import add_flags
from server.cluster.deploy_file import NEEDS_RAY, describe, read, write
from server.cluster.local_cluster import running_cluster, signal_to_stop
from server.cluster.local_node import ClusterError
from server.cluster.options import ClusterOptions
from server.memory.machine import total_bytes
from server.model.checkpoint.local_files import check_model
from server.model.errors import ModelError
from server.observability.logging import COMMAND, set_up_logging
from server.settings import SECRETS, ServeSettings, SettingsError, load_settings, read_settings_file

# Settings of `greenroom serve` that a cluster has elsewhere, or that only a process of its own can have.
LEFT_OUT = frozenset({"threads", "state", "trace_file", *SECRETS})
SETTINGS = tuple(name for name in ServeSettings.model_fields if name not in LEFT_OUT)
OPTIONS = ("replicas", "max_replicas", "cpus", "gpus", "ingresses")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=["run", "config"],
        metavar="ACTION",
        help="run: start Ray on this machine alone, deploy a file to it, and stop both at a signal; config: print the "
        "file, which `serve deploy` takes, too",
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="FILE-OR-MODEL",
        help="the file to run; of config, the model, as for `greenroom serve` (default: the bundled one), whose flags "
        "become settings of each replica",
    )
    parser.add_argument("--replicas", type=int, help="replicas of the engine (default: 2)")
    parser.add_argument("--max-replicas", type=int, help="replicas that long queues and stalls may lead to")
    parser.add_argument("--cpus", type=float, help="cores, and threads, of each replica (default: 2)")
    parser.add_argument("--gpus", type=float, help="GPUs of each replica (default: 0)")
    parser.add_argument("--ingresses", type=int, help="processes that serve the HTTP API (default: 1)")
    add_flags(parser, SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Run an action, and return the exit status."""
    set_up_logging("info", COMMAND)
    try:
        if arguments.action == "config":
            return _print_file(arguments)
        if find_spec("ray") is None:
            return finish(NEEDS_RAY, FAILURE)
        return _run_file(arguments)
    except SettingsError as error:
        return fail(error, WRONG_USAGE)
    except (ClusterError, ModelError) as error:
        return fail(error, FAILURE)


def _print_file(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    flags = {name: given[name] for name in SETTINGS if name in given}
    written = {} if arguments.config is None else read_settings_file(arguments.config)
    for name in sorted(LEFT_OUT.intersection(written)):
        raise SettingsError(f"{name} in {arguments.config}: replicas can't have it; see docs/scaling.md")
    settings = load_settings(flags, {}, arguments.config)
    values = {**written, **flags}
    options = {name: given[name] for name in OPTIONS if given[name] is not None}
    for name in ("host", "port", "memory"):
        value = values.pop(name, None)
        if name == "memory" and value is not None:
            options[name] = value
    if "memory" not in options:
        raise SettingsError("say what each replica may take: --memory 12GiB")
    check_model(arguments.target)
    checked = ClusterOptions.checked({**options, "model": arguments.target, "settings": values})
    sys.stdout.write(write(describe(checked, settings.host, settings.port)))
    return 0


def _run_file(arguments: argparse.Namespace) -> int:
    flags = [name for name in (*SETTINGS, *OPTIONS) if getattr(arguments, name, None) is not None]
    if arguments.target is None or flags:
        raise SettingsError(
            "write `greenroom cluster run FILE.yaml`, with a file that `greenroom cluster config` prints"
        )
    content, options = read(Path(arguments.target))
    _check_machine(options)
    # Ray prints logs of its processes.
    with redirect_stdout(sys.stderr), running_cluster(content, options, _end) as line:
        asked = signal_to_stop()  # before anyone knows that it runs
        print(line, file=sys.__stdout__, flush=True)
        asked.wait()
    return 0


def _end(error: ClusterError) -> None:
    os._exit(fail(error, FAILURE))  # whatever waits for Ray does so for ever


def _check_machine(options: ClusterOptions) -> None:
    """Check what replicas on this machine need of it: they would report it late, after Serve has tried three times.

    Raises:
        SettingsError: there is no such file, or too little memory.
        ModelError: there is no such model.
    """
    options.budget.check_keys()
    check_model(options.model)
    needed, has = options.replicas * options.memory_bytes, total_bytes()
    if needed > has:
        raise SettingsError(
            f"args.memory: {options.replicas} replicas of {options.memory} are more than this machine's "
            f"{format_bytes(has)}; write less, or fewer replicas"
        )
