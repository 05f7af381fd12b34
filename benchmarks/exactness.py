"""Measures the divergence of each engine's next-token distributions from those of float32.

    python -m benchmarks.exactness MODEL --transformers PYTHON --llama-cpp PYTHON [--add results.json]

transformers in float32 samples a text from the model and computes the reference logits. The result is the mean
Kullback-Leibler divergence from these, in nats, over all positions, for Greenroom in each format, for llama.cpp in each
of its formats, and for transformers in bfloat16. Each engine computes the text as one prompt, and token by token, as in
decoding. Packs and GGUF files are expected where ``benchmarks.compare`` looks for them. The last line is one JSON
object; ``--add`` also merges it into the last line of a results file of ``benchmarks.compare``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison.engines import Variant
from benchmarks.comparison.gguf_files import SCRIPTS_FOLDER
from benchmarks.comparison.weights import weights_of

GREENROOM_FORMATS = {"bf16": "", "int8": "-int8", "int4": "-int4"}
GGUF_FORMATS = ("bf16", "Q8_0", "Q4_0", "Q4_1", "Q4_K_M")


def mean_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean over positions of KL(reference || logits), both ``(positions, vocabulary)``, in float64."""
    expected, actual = _log_softmax(reference), _log_softmax(logits)
    return float((np.exp(expected) * (expected - actual)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class LogitsRunner:
    """Runs the scripts that write logits, each in its engine's environment.

    The text and its reference logits are cached in ``folder``.
    """

    def __init__(self, folder: Path, threads: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._ids, self._reference, self._threads = folder / "ids.json", folder / "float32.npy", threads

    def reference(self, interpreter: str, model: Path, tokens: int) -> np.ndarray:
        """Return the reference logits of the text, ``(tokens, vocabulary)``; sample the text first if needed."""
        if not self._reference.exists():
            more = ["--dtype", "float32", "--sample", str(self._ids), "--tokens", str(tokens)]
            self._run(
                interpreter, "run_transformers.py", model, [*more, "--logits", str(self._ids), str(self._reference)]
            )
        return np.load(self._reference)

    def of(self, interpreter: str, script: str, model: Path, *more: str, folder: Path | None = None) -> np.ndarray:
        """Return an engine's logits of the text, ``(tokens, vocabulary)``."""
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "logits.npy"
            self._run(interpreter, script, model, ["--logits", str(self._ids), str(out), *more], folder)
            return np.load(out)

    def _run(self, interpreter: str, script: str, model: Path, more: list[str], folder: Path | None = None) -> None:
        command = [interpreter, str(SCRIPTS_FOLDER / script), str(model), "--threads", str(self._threads), *more]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def measured(options: argparse.Namespace, logits: LogitsRunner, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield one entry for each engine and format that is available."""
    model = options.model.resolve()
    work = (options.work or model.parent).resolve()
    config = json.loads((model / "config.json").read_text())
    reference = logits.reference(options.transformers, model, tokens)

    def entry(engine: str, name: str, path: Path, run: Callable[..., np.ndarray], *, decodes: bool) -> dict[str, Any]:
        found = {
            "engine": engine,
            "format": name,
            "expert_bytes": weights_of(path, config).expert_bytes,
            "prompt": mean_divergence(reference, run()),
            "decode": mean_divergence(reference, run("--one-by-one")) if decodes else None,
        }
        print(found, flush=True)
        return found

    for variant in [Variant("greenroom", Path.cwd()), *map(Variant.parse, options.also)]:
        for name, suffix in GREENROOM_FORMATS.items():
            path = ((variant.packs or work) if suffix else model.parent) / f"{model.name}{suffix}"
            if path.exists():

                def greenroom(*more: str, path: Path = path, variant: Variant = variant) -> np.ndarray:
                    return logits.of(options.greenroom, "run_greenroom.py", path, *more, folder=variant.folder)

                yield entry(variant.name, name, path, greenroom, decodes=True)
    for name in GGUF_FORMATS if options.llama_cpp else ():
        path = work / f"{model.name}-{name}.gguf"
        if path.exists():

            def llama(*more: str, path: Path = path) -> np.ndarray:
                return logits.of(options.llama_cpp, "run_llama_cpp.py", path, *more)

            yield entry("llama.cpp", name, path, llama, decodes=True)

    def transformers() -> np.ndarray:
        return logits.of(options.transformers, "run_transformers.py", model, "--dtype", "bfloat16")

    yield entry("transformers", "bf16", model, transformers, decodes=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--greenroom", default=sys.executable, help="interpreter of Greenroom's environment")
    parser.add_argument("--transformers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--also", action="append", default=[], metavar="VARIANT", help="as in benchmarks.compare")
    parser.add_argument("--work", type=Path, help="folder of packs and GGUF files")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--add", type=Path, metavar="FILE", help="results file of benchmarks.compare to add these to")
    options = parser.parse_args()
    cache = (options.work or options.model.resolve().parent) / f"{options.model.name}-exactness-{options.tokens}"
    entries = list(measured(options, LogitsRunner(cache, options.threads), options.tokens))
    result = {"benchmark": "exactness", "tokens": options.tokens, "entries": entries}
    if options.add:
        *before, last = options.add.read_text().strip().splitlines()
        options.add.write_text("\n".join([*before, json.dumps(json.loads(last) | {"exactness": result})]) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
