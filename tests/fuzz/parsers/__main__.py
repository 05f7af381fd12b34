"""`python -m tests.fuzz.parsers`: fuzzes the parsers for some seconds, guided by the code that their input reaches.

Input that shows an error is written to the corpus, which the tests run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["expert_store", "server"]):
    from tests.fuzz.parsers.targets import CORPUS, TARGETS

NAMES = tuple(TARGETS)  # the first byte of an input is the target's index
SLOW_SECONDS = 25  # an input that takes longer is a finding
STRINGS = re.compile(rb'"[A-Za-z0-9_.-]{2,40}"|[a-z][a-z0-9_-]*(?:\.[a-z0-9_]+)+')  # of JSON, and keys of GGUF


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.parsers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: a random one")
    parser.add_argument("--targets", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--out", type=Path, default=CORPUS, help="folder for input that shows an error")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="greenroom-fuzz-corpus-"))
    words = _fill(folder, options.targets)
    dictionary = folder.with_suffix(".dict")
    dictionary.write_text("".join(f'"{_escape(word)}"\n' for word in sorted(words)), "utf-8")
    chosen = {NAMES.index(name) for name in options.targets}

    def test(data: bytes) -> None:
        if not data or data[0] not in chosen:
            return
        try:
            TARGETS[NAMES[data[0]]](data[1:])
        except BaseException:
            _keep(options.out, NAMES[data[0]], data[1:])
            raise

    arguments = (
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-dict={dictionary}",
        f"-timeout={SLOW_SECONDS}",
        "-rss_limit_mb=8192",
        "-max_len=8192",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        str(folder),
    )
    atheris.Setup([sys.argv[0], *arguments], test)
    atheris.Fuzz()


def _fill(folder: Path, targets: Sequence[str]) -> set[bytes]:
    """Copy the corpora into one folder, and return the words in them."""
    words: set[bytes] = set()
    for name in targets:
        for path in sorted((CORPUS / name).iterdir()):
            data = path.read_bytes()
            words.update(STRINGS.findall(data))
            (folder / f"{name}-{path.name}").write_bytes(bytes([NAMES.index(name)]) + data)
    return words


def _escape(word: bytes) -> str:
    return word.decode().replace("\\", "\\\\").replace('"', '\\"')


def _keep(out: Path, name: str, data: bytes) -> None:
    path = out / name / f"found-{sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(json.dumps({"finding": os.fspath(path), "target": name}), flush=True)


if __name__ == "__main__":
    main()
