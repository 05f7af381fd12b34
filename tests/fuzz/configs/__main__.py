"""`python -m tests.fuzz.configs`: serves models with mutated configs for some seconds.

It prints each finding, as JSON that `--play` runs again, and ends with an error if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.configs.mutations import Mutation, mutate
from tests.fuzz.configs.subjects import NAMES, make_subject, read_values
from tests.fuzz.configs.trial import try_mutation


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.configs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--subjects", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--play", nargs=2, metavar=("SUBJECT", "MUTATION"), help="run one mutation again")
    parser.add_argument("--root", type=Path, help="folder of the models, which is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other threads
    with tempfile.TemporaryDirectory(prefix="greenroom-fuzz-configs-") as folder:
        root = options.root or Path(folder)
        if options.play:
            subject, text = options.play
            print(try_mutation(make_subject(subject, root), Mutation.read(text)))
            return
        sys.exit(_run(options, root))


def _run(options: argparse.Namespace, root: Path) -> int:
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 30)
    source, counts, end = random.Random(seed), Counter[str](), time.monotonic() + options.seconds
    while time.monotonic() < end:
        name = source.choice(options.subjects)
        place = make_subject(name, root)
        mutation = mutate(read_values(place), source)
        outcome = try_mutation(place, mutation)
        counts[outcome.kind] += 1
        report = {"subject": name, "mutation": str(mutation), "seconds": round(outcome.seconds, 1)}
        if outcome.kind == "finding" or os.environ.get("FUZZ_VERBOSE"):
            print(json.dumps(report | {outcome.kind: outcome.text, "mib": outcome.nbytes >> 20}), flush=True)
    print(json.dumps({"seed": seed, **counts}), flush=True)
    return int(counts["finding"] > 0)


if __name__ == "__main__":
    main()
