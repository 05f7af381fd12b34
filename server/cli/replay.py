"""`greenroom replay`: hit ratios of cache policies and sizes on recorded routing."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from expert_store import ExpertStoreError
from expert_store.policies import POLICIES
from server.cli.exit_status import FAILURE, WRONG_USAGE, fail
from server.replay.measure import replay_all
from server.replay.report import as_json, as_table, draw_curves
from server.replay.sizes import UsageError, parse_sizes

SIZES = "10%,15%,25%,35%,50%,75%"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="routing log of serve --trace-file")
    parser.add_argument("--policies", metavar="NAME,...", help="cache policies to compare (default: all)")
    parser.add_argument(
        "--sizes",
        default=SIZES,
        metavar="SIZE,...",
        help=f"memory for experts, as 25%% of them or 6GiB (default: {SIZES.replace('%', '%%')})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--plot", type=Path, metavar="F.png", help="write a plot of hit ratio by size; needs greenroom[plot]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, print the results, and return the exit status."""
    if arguments.plot and find_spec("matplotlib") is None:
        return fail(UsageError("--plot needs matplotlib: pip install 'greenroom[plot]'"), FAILURE)
    try:
        policies, sizes = _policies(arguments.policies), parse_sizes(arguments.sizes)
        reports = replay_all(arguments.traces, policies, sizes)
        if arguments.plot:
            draw_curves(reports, arguments.plot)
    except UsageError as error:
        return fail(error, WRONG_USAGE)
    except (ExpertStoreError, OSError) as error:
        return fail(error, FAILURE)
    sys.stdout.write((json.dumps(as_json(reports)) if arguments.json else as_table(reports)) + "\n")
    return 0


def _policies(text: str | None) -> tuple[str, ...]:
    if text is None:
        return POLICIES
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise UsageError(f"--policies: {unknown[0]!r} is not a cache policy; choose from {', '.join(POLICIES)}")
    return names
