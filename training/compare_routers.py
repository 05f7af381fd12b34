"""Trains the routers and a dense model at equal compute, and writes docs/routers.md.

    python -m training.compare_routers CORPUS OUT [--page docs]

OUT is a folder for ``results.json``, and for the text encoder with the best accuracy in the hub's layout. It takes
minutes on two cores; a result that is there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training.router_data import Task, digits, domains
from training.router_training import VARIANTS, train

DEMO = Path(__file__).resolve().parent.parent / "server/demo/model/tokenizer.json"
STEPS = {"digits": 800, "domains": 1500}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=Path, help="a folder with a text file for each domain")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=DEMO, help="default: that of the bundled model")
    parser.add_argument("--page", type=Path, metavar="DOCS", help="write routers.md and its pictures into this folder")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results = compare(asked.corpus, asked.tokenizer, asked.out)
    if asked.page is not None:
        from training.routers_page import write_page  # noqa: PLC0415  needs matplotlib

        write_page(results, asked.page)


def compare(corpus: Path, tokenizer: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Train each variant on each task, and return the results by task; the best text encoder is saved."""
    path = out / "results.json"
    results: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    vocab_size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    for task in (digits(), domains(corpus, tokenizer)):
        rows = results.setdefault(task.name, [])
        for variant in VARIANTS[len(rows) :]:
            model, result = train(variant, task, vocab_size, STEPS[task.name])
            rows.append(asdict(result))
            print(f"{task.name}: {variant.name}: {result.accuracy:.4f}, {result.seconds:.0f} s", flush=True)
            if _is_best(task, rows):
                model.to(torch.bfloat16).save_pretrained(out / "classifier")  # type: ignore[operator]
            path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _is_best(task: Task, rows: list[dict[str, Any]]) -> bool:
    """Return True if the last row is a Mixture-of-Experts text encoder with the best accuracy so far."""
    experts = [row for row in rows if row["variant"] != "dense"]
    return not task.is_vision and bool(experts) and max(experts, key=lambda row: float(row["accuracy"])) is rows[-1]


if __name__ == "__main__":
    main()
