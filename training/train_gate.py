"""Trains the gate of a mixture of LoRA adapters of the bundled model, together with the adapters, and measures it.

    python -m training.train_gate CORPUS OUT [--adapters FOLDER ...] [--domains NAME ...] [--minutes N]

OUT gets the gate, a folder for each adapter, ``results.json`` and ``README.md``; a server loads it as an adapter. There
is one adapter for each domain of the corpus. It begins from a folder of ``--adapters`` of its domain's name, of which
the additions to attention are taken, or from nothing. The base model is frozen. Held-out text only serves to measure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from server.model.adapters.errors import AdapterError
from server.model.checkpoint.locate import BUNDLED
from server.model.trunk.fingerprint import fingerprint
from server.model.trunk_loader import load_trunk
from training import measure
from training.corpus import Domain, read_corpus, rows_of
from training.errors import CorpusError, DemoError
from training.gate_readme import ALL, ARROW, GATE, MEAN, OWN, render
from training.gate_training import GateShape, Mixture, rank_of
from training.serving import served_perplexity, serving
from training.train_adapters import DOMAINS, LENGTH, beginning_of, describe_file
from training.tuning import Tuning, TuningText, mean_loss, prepare_text, tune

RESULTS = "results.json"
RATE = 3e-3  # the learning rate of adapters that begin from nothing
GATE_ROWS = 4  # of each domain, from which the gate begins
HELD_OUT_TOKENS = 8192  # of each domain that are measured
SERVED_ROWS = 2  # of each domain, measured through the server

Results = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All settings of a run.

    Args:
        adapters: folders in PEFT's format from which adapters begin; their names are domains.
    """

    domains: tuple[str, ...] = DOMAINS
    adapters: tuple[Path, ...] = ()
    shape: GateShape = field(default_factory=GateShape)
    tuning: Tuning = field(default_factory=lambda: Tuning(minutes=4.0))


def mix(texts: Sequence[TuningText]) -> TuningText:
    """Return the rows of several domains in turn, the same number of each."""
    least = min(len(text.train) for text in texts)
    train = np.stack([text.train[:least] for text in texts], axis=1)
    return TuningText(train.reshape(-1, train.shape[-1]), np.concatenate([text.validation for text in texts]))


def perplexities(mixture: Mixture, domains: Mapping[str, Domain]) -> dict[str, float]:
    """Return the held-out perplexity of each domain as the adapters are mixed now, and that at the mean loss."""
    held = {name: measure.measure(mixture.model, domain, LENGTH) for name, domain in domains.items()}
    found = {name: round(each.perplexity, 3) for name, each in held.items()}
    found[ALL] = round(measure.mean_perplexity([*held.values()]), 3)
    print(f"held-out perplexity: {found}", flush=True)
    return found


def measure_all(mixture: Mixture, domains: Mapping[str, Domain]) -> Results:
    """Return the perplexities with the base model, each adapter, and each way to mix them."""
    found: Results = {}
    with mixture.fixed({}):
        found["base model"] = perplexities(mixture, domains)
    for name in mixture.names:
        with mixture.fixed({name: 1.0}):
            found[f"adapter `{name}`"] = perplexities(mixture, domains)
    with mixture.fixed(dict.fromkeys(mixture.names, 1 / len(mixture.names))):
        found[MEAN] = perplexities(mixture, domains)
    return found | measure_choices(mixture, domains)


def measure_choices(mixture: Mixture, domains: Mapping[str, Domain]) -> Results:
    """Return the perplexities with Arrow and with the gate, and of each domain with its own adapter."""
    with mixture.arrow():
        found = {ARROW: perplexities(mixture, domains)}
    own = {}
    for name, domain in domains.items():
        with mixture.fixed({name: 1.0}):
            own[name] = perplexities(mixture, {name: domain})[name]
    losses = [math.log(each) for each in own.values()]
    found[OWN] = {**own, ALL: round(math.exp(sum(losses) / len(losses)), 3)}
    found[GATE] = perplexities(mixture, domains)
    return found


def train_gate(corpus: Path, out: Path, plan: Plan, base: Path = BUNDLED) -> Results:
    """Train, save and measure a gate and its adapters, and write ``results.json`` and ``README.md``."""
    started = time.monotonic()
    torch.manual_seed(plan.tuning.seed)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    domains = {domain.name: domain for domain in read_corpus(corpus, tokenizer)}
    folders = {folder.name: folder for folder in plan.adapters}
    missing = [name for name in plan.domains if name not in domains]
    if missing:
        raise CorpusError(f"the corpus has no domain {missing[0]!r}; choose among {', '.join(domains)}")
    other = [name for name in folders if name not in plan.domains]
    if other:
        raise DemoError(
            f"--adapters has {other[0]!r}, which is none of the domains; choose among {', '.join(plan.domains)}"
        )
    ranks = {rank_of(folder) for folder in folders.values()} or {plan.shape.rank}
    shape = replace(plan.shape, rank=max(ranks))
    mixture = Mixture(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), plan.domains, shape)
    for number, name in enumerate(plan.domains):
        if name in folders:
            mixture.take(number, folders[name])
    held = {name: beginning_of(domains[name], HELD_OUT_TOKENS) for name in plan.domains}
    texts = {name: prepare_text(domains[name], plan.tuning) for name in plan.domains}
    mixture.begin_gate({name: text.train[:GATE_ROWS] for name, text in texts.items()})
    before = measure_choices(mixture, held) if folders else None  # without them, adapters add nothing yet
    tuning = replace(plan.tuning, rows=len(texts))
    tuned = tune(mixture.model, mixture, mix([*texts.values()]), shape.rate, tuning=tuning, title="gate")
    mixture.save(out, fingerprint(load_trunk(base, torch.bfloat16)))
    mixture.read(out)
    results: Results = {
        "plan": {**asdict(plan), "adapters": [*folders], "shape": asdict(shape), "tuning": asdict(tuning)},
        "base": describe_file(base / "model.safetensors"),
        "row_tokens": LENGTH,
        "held_out_tokens": {name: sum(map(len, domain.held_out)) for name, domain in held.items()},
        "training": asdict(tuned),
        "before": before,
        "after": measure_all(mixture, held),
        "served": measure_served(base, out, mixture, held),
        "files": describe_tree(out),
        "seconds": round(time.monotonic() - started),
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(render(results))
    return results


def describe_tree(folder: Path) -> dict[str, Any]:
    """Return the size and the checksum of the weights and settings in a mixture's folder, by relative path."""
    paths = [*folder.glob("gate_*"), *folder.glob("*/adapter_*")]
    return {str(path.relative_to(folder)): describe_file(path) for path in sorted(paths)}


def measure_served(base: Path, out: Path, mixture: Mixture, domains: Mapping[str, Domain]) -> Results:
    """Return the perplexity of some held-out rows with the gate, as served and as trained."""
    rows = {name: rows_of(domains[name].held_out, LENGTH)[:SERVED_ROWS] for name in mixture.names}
    served: Results = {}
    with serving(base, "--log-level", "warning", f"--adapter=mixture={out}") as (client, _):
        for name, part in rows.items():
            served[name] = {
                "rows": len(part),
                "served": round(served_perplexity(client, "mixture", part), 3),
                "trained": round(math.exp(mean_loss(mixture.model, part)), 3),
            }
            print(f"served {name}: {served[name]}", flush=True)
    return served


def parse_args() -> tuple[argparse.Namespace, Plan]:
    default = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path, help="folder of the artefact; one that is there is replaced")
    parser.add_argument("--adapters", type=Path, nargs="+", default=(), help="folders from which adapters begin")
    parser.add_argument("--domains", nargs="+", default=default.domains, help="one adapter each")
    parser.add_argument("--minutes", type=float, default=default.tuning.minutes, help="of training, at most")
    parser.add_argument("--steps", type=int, default=default.tuning.steps, help="of training, at most")
    parser.add_argument("--top-k", type=int, default=default.shape.top_k, help="adapters of a token at a layer")
    parser.add_argument("--rank", type=int, default=default.shape.rank, help="of adapters that begin from nothing")
    rates = f"learning rate (default: {RATE:g}, or {default.shape.rate:g} with --adapters)"
    parser.add_argument("--rate", type=float, help=rates)
    parser.add_argument("--seed", type=int, default=default.tuning.seed)
    args = parser.parse_args()
    if args.minutes <= 0 or args.steps < 1:
        parser.error("--minutes and --steps must be positive")
    if not 1 <= args.top_k <= len(args.domains):
        parser.error(f"--top-k must be 1 to {len(args.domains)}, the number of domains")
    rate = args.rate or (default.shape.rate if args.adapters else RATE)
    plan = Plan(
        tuple(args.domains),
        tuple(args.adapters),
        replace(default.shape, top_k=args.top_k, rank=args.rank, rate=rate),
        replace(default.tuning, minutes=args.minutes, steps=args.steps, seed=args.seed),
    )
    return args, plan


def main() -> None:
    args, plan = parse_args()
    torch.set_num_threads(1)  # more are no faster for so small a model
    try:
        train_gate(args.corpus, args.out, plan)
    except (AdapterError, DemoError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
