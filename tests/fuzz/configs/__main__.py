"""`python -m tests.fuzz.configs`: serves models with mutated configs for some seconds, after those that were findings.

A finding is a crash, an error that is no sentence, an answer that fails, or memory that no plan counts. It is written
to the file of those that the tests run, and the run ends with an error.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.configs.mutations import Mutation, mutate
from tests.fuzz.configs.subjects import NAMES, make_subject, read_values
from tests.fuzz.configs.trial import Outcome, try_mutation

KEPT = Path(__file__).with_name("kept.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.configs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60, help="0: those of the file alone")
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--subjects", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--play", nargs=2, metavar=("SUBJECT", "MUTATION"), help="run one mutation alone")
    parser.add_argument("--root", type=Path, help="folder of the models, which is kept")
    parser.add_argument("--kept", type=Path, default=KEPT, help="file of mutations that were findings")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that is forked must have no other threads
    with tempfile.TemporaryDirectory(prefix="greenroom-fuzz-configs-") as folder:
        session = Session(options.root or Path(folder), options.kept)
        if options.play:
            name, text = options.play
            print(session.run(name, Mutation.read(text)), flush=True)
            return
        session.run_kept(options.subjects)
        seed = options.seed or random.SystemRandom().randrange(1, 1 << 30)
        session.run_random(options.subjects, random.Random(seed), options.seconds)
        print(json.dumps({"seed": seed, **session.counts}), flush=True)
        sys.exit(int(session.counts["finding"] > 0))


class Session:
    """Runs mutations, and reports and keeps findings."""

    def __init__(self, root: Path, kept: Path):
        self.counts = Counter[str]()
        self._root, self._kept = root, kept

    def run(self, name: str, mutation: Mutation) -> Outcome:
        """Run one mutation of a subject."""
        outcome = try_mutation(make_subject(name, self._root), mutation)
        self.counts[outcome.kind] += 1
        if outcome.kind == "finding":
            print(json.dumps({"subject": name, "mutation": str(mutation), "finding": outcome.text}), flush=True)
        return outcome

    def run_kept(self, subjects: list[str]) -> None:
        """Run the mutations that were findings."""
        for line in self._kept.read_text().splitlines() if self._kept.exists() else ():
            case = json.loads(line)
            if case["subject"] in subjects:
                self.run(case["subject"], Mutation.read(case["mutation"]))

    def run_random(self, subjects: list[str], source: random.Random, seconds: float) -> None:
        """Run random mutations for a time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = source.choice(subjects)
            mutation = mutate(read_values(make_subject(name, self._root)), source)
            if self.run(name, mutation).kind == "finding":
                with self._kept.open("a") as file:
                    file.write(json.dumps({"subject": name, "mutation": str(mutation)}) + "\n")


if __name__ == "__main__":
    main()
