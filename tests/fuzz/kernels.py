"""`python -m tests.fuzz.kernels`: runs hostile descriptions of weights and layers under sanitizers.

It ends with the first finding, and prints what runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.server.kernels.native.build import OPTIONS, build_sanitized_driver, load_setup

ROUNDS = 2000  # of one run of the driver


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.kernels", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    options = parser.parse_args()
    driver = build_sanitized_driver(load_setup(), Path(tempfile.mkdtemp(prefix="greenroom-fuzz-kernels-")))
    first = options.seed or random.SystemRandom().randrange(1, 1 << 30)
    num_runs, end = 0, time.monotonic() + options.seconds
    while time.monotonic() < end:
        command = [str(driver), "hostile", str(ROUNDS), str(first + num_runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | OPTIONS)
        if done.returncode or done.stderr:
            raise SystemExit(f"{done.stdout}{done.stderr}\nfound by: {' '.join(command)}")
        num_runs += 1
    sys.stdout.write(f"{num_runs} runs of {ROUNDS} hostile descriptions at each level from seed {first}, no finding\n")


if __name__ == "__main__":
    main()
