"""Tokens that llama.cpp makes of texts; runs in an environment with llama-cpp-python.

Reads JSON from standard input, ``{"files": [...], "texts": [...]}``, and writes ``[[[token, ...], ...], ...]``: for
each file, for each text, its tokens with those that the file adds, special tokens in the text matched.
"""

from __future__ import annotations

import json
import sys

from llama_cpp import Llama


def main() -> None:
    given = json.load(sys.stdin)
    found = []
    for file in given["files"]:
        model = Llama(file, vocab_only=True, verbose=False)
        found.append([model.tokenize(text.encode(), add_bos=True, special=True) for text in given["texts"]])
        model.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
