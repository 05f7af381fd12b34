"""Trains three LoRA adapters and an expert variant of the bundled model on domains of its corpus, and measures them.

    python -m training.train_adapters CORPUS OUT [--minutes N]

OUT gets ``adapters/NAME``, ``variants/NAME``, ``adapters/results.json`` and ``adapters/README.md``; if it is
``server/demo``, they are installed. Held-out text only serves to measure. Training ends early by the loss on training
documents that are set aside. ``--minutes`` limits each of the four trainings. ``--examples`` trains nothing: it writes
the examples for the model ``auto`` of the adapters in OUT again, and measures its choices.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.model.checkpoint.locate import BUNDLED
from training import measure
from training.adapters_readme import render
from training.auto_choice import measure_auto
from training.corpus import Domain, Tokens, read_corpus, rows_of
from training.errors import CorpusError, DemoError
from training.expert_training import VariantShape, load_variant, train_variant
from training.lora_training import LoraShape, load_adapted, train_adapter
from training.routing_examples import write_routing
from training.serving import served_perplexity, serving
from training.tuning import Tuning, mean_loss, prepare_text

CHATS = "chat"  # the domain whose questions are about the others
ADAPTERS, VARIANTS, RESULTS = "adapters", "variants", "results.json"
DOMAINS = ("legal", "python", "recipes")
LENGTH = 1024  # tokens of a row that is measured, as in the report of the model
OTHER_TOKENS = 2048  # held-out tokens of each domain that a file is not for
SERVED_ROWS = 3  # of each domain, measured through the server

Results = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    domains: tuple[str, ...] = DOMAINS
    variant: str = DOMAINS[0]
    lora: LoraShape = field(default_factory=LoraShape)
    experts: VariantShape = field(default_factory=VariantShape)
    tuning: Tuning = field(default_factory=Tuning)
    bfloat16: bool = False


class Measured:
    """Held-out text, and the base model's perplexity on it: all of the own domains', the beginning of each domain's.

    Args:
        own: the domains that something is trained on.
    """

    def __init__(self, base: Path, domains: dict[str, Domain], own: set[str]):
        self._complete = {name: domains[name] for name in sorted(own)}
        self._beginnings = {name: beginning_of(domain, OTHER_TOKENS) for name, domain in domains.items()}
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._before = {name: measure.measure(model, part, LENGTH) for name, part in self._beginnings.items()}
        self._before_complete = {name: measure.measure(model, part, LENGTH) for name, part in self._complete.items()}

    def compare(self, model: PreTrainedModel, own: str, title: str) -> Results:
        """Return the perplexity of each domain with the base model and with another one."""
        found = {}
        for name, beginning in self._beginnings.items():
            before = self._before_complete[name] if name == own else self._before[name]
            after = measure.measure(model, self._complete[name] if name == own else beginning, LENGTH)
            found[name] = {
                "tokens": before.num_tokens,
                "before": round(before.perplexity, 3),
                "after": round(after.perplexity, 3),
            }
            print(f"{title} on {name}: {before.perplexity:.2f} -> {after.perplexity:.2f}", flush=True)
        return found

    def distances(self) -> dict[str, dict[str, float]]:
        """Return how differently two domains use the experts: Jensen-Shannon divergence in bits, mean over layers."""
        shares = dict(zip(self._before, measure.expert_shares(list(self._before.values())).swapaxes(0, 1), strict=True))
        return {
            name: {
                other: round(float(np.mean(list(map(measure.mutual_information, np.stack([a, b], axis=1))))), 4)
                for other, b in shares.items()
                if other != name
            }
            for name, a in shares.items()
        }


def beginning_of(domain: Domain, tokens: int) -> Domain:
    """Return a domain with the first tokens of its held-out text alone."""
    text: Tokens = np.concatenate(domain.held_out)[:tokens]
    return replace(domain, held_out=[text], held_out_texts=[])


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and the checksum of each file."""
    return {path.name: describe_file(path) for path in sorted(folder.iterdir())}


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and the checksum of a file."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@dataclass(frozen=True)
class Task:
    """The training of one adapter or variant on a domain."""

    kind: str  # ADAPTERS or VARIANTS
    domain: Domain
    tokenizer: str
    base: Path
    folder: Path
    plan: Plan
    held: Measured
    chats: Domain | None = None  # questions about the domain are examples for the model auto

    def run(self) -> Results:
        """Train, save and measure; return the figures."""
        torch.set_num_threads(1)  # more are no faster for so small a model
        plan, name = self.plan, self.domain.name
        text, dtype = prepare_text(self.domain, plan.tuning), torch.bfloat16 if plan.bfloat16 else torch.float32
        title = f"{self.folder.parent.name}/{name}"
        found: Results = {}
        if self.kind == ADAPTERS:
            tuned = train_adapter(
                self.base, text, plan.lora, tuning=plan.tuning, out=self.folder, dtype=dtype, title=title
            )
            write_routing(self.folder, self.domain, Tokenizer.from_str(self.tokenizer), self.chats)
            model = load_adapted(self.base, self.folder)
        else:
            tuned, chosen = train_variant(
                self.base, text, plan.experts, tuning=plan.tuning, out=self.folder, dtype=dtype, title=title
            )
            found["experts"] = {str(layer): asdict(experts) for layer, experts in chosen.items()}
            model = load_variant(self.base, self.folder)
        before, after = tuned.perplexities
        return {
            "training": {**asdict(tuned), "validation": {"before": before, "after": after}},
            **found,
            "files": describe_files(self.folder),
            "perplexity": self.held.compare(model, name, title),
        }


def train_all(corpus: Path, out: Path, plan: Plan, base: Path = BUNDLED, jobs: int = 1) -> Results:
    """Train, save and measure all files, and write ``results.json`` and ``README.md``.

    Args:
        jobs: trainings at a time, each in a process of its own with one compute thread.
    """
    started = time.monotonic()
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    domains = {domain.name: domain for domain in read_corpus(corpus, tokenizer)}
    missing = [name for name in (*plan.domains, plan.variant) if name not in domains]
    if missing:
        raise CorpusError(f"the corpus has no domain {missing[0]!r}; choose among {', '.join(domains)}")
    held = Measured(base, domains, {*plan.domains, plan.variant})
    print(f"corpus read and base model measured in {time.monotonic() - started:.0f} s", flush=True)
    places = [(ADAPTERS, name) for name in plan.domains] + [(VARIANTS, plan.variant)]
    tasks = [
        Task(kind, domains[name], tokenizer.to_str(), base, _empty(out / kind / name), plan, held, domains.get(CHATS))
        for kind, name in places
    ]
    results: Results = {
        "plan": asdict(plan),
        "base": describe_files(base)["model.safetensors"],
        "row_tokens": LENGTH,
        "other_tokens": OTHER_TOKENS,
        "distances": held.distances(),
        ADAPTERS: {},
        VARIANTS: {},
    }
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for (kind, name), found in zip(places, pool.map(Task.run, tasks), strict=True):
            results[kind][name] = found
    results |= measure_served(base, out, plan, domains)
    results["seconds"] = round(time.monotonic() - started)
    _write_results(out / ADAPTERS, results)
    return results


def write_examples(corpus: Path, out: Path, base: Path = BUNDLED) -> Results:
    """Write the examples of trained adapters again, measure the choices of ``auto``, and update the results."""
    adapters = out / ADAPTERS
    results: Results = json.loads((adapters / RESULTS).read_text())
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    domains = {domain.name: domain for domain in read_corpus(corpus, tokenizer)}
    for name, entry in results[ADAPTERS].items():
        write_routing(adapters / name, domains[name], tokenizer, domains.get(CHATS))
        entry["files"] = describe_files(adapters / name)
    flags = [f"--adapter={name}={adapters / name}" for name in results[ADAPTERS]]
    with serving(base, "--log-level", "warning", *flags) as (client, own_name):
        results["auto"] = measure_auto(client, own_name, domains, results[ADAPTERS])
    _write_results(adapters, results)
    return results


def _write_results(adapters: Path, results: Results) -> None:
    (adapters / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    (adapters / "README.md").write_text(render(results))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def measure_served(base: Path, out: Path, plan: Plan, domains: dict[str, Domain]) -> Results:
    """Return what a server makes of the files: the perplexity of some held-out rows, and the choices of ``auto``."""
    adapters, variants = out / ADAPTERS, out / VARIANTS
    loaders: dict[str, Callable[[], PreTrainedModel]] = {
        **{name: lambda name=name: load_adapted(base, adapters / name) for name in plan.domains},  # type: ignore[misc]
        f":{plan.variant}": lambda: load_variant(base, variants / plan.variant),
    }
    flags = [f"--adapter={name}={adapters / name}" for name in plan.domains]
    rows = {name: rows_of(domains[name].held_out, LENGTH)[:SERVED_ROWS] for name in {*plan.domains, plan.variant}}
    served = {}
    with serving(base, "--log-level", "warning", "--experts-dir", str(variants), *flags) as (client, own_name):
        client.post("/v1/experts/load", json={"name": plan.variant, "path": plan.variant}).raise_for_status()
        for name, load in loaders.items():
            domain = name.removeprefix(":")
            model = f"{own_name}{name}" if name.startswith(":") else name
            served[name] = {
                "domain": domain,
                "rows": len(rows[domain]),
                "base": round(served_perplexity(client, own_name, rows[domain]), 3),
                "served": round(served_perplexity(client, model, rows[domain]), 3),
                "trained": round(math.exp(mean_loss(load(), rows[domain])), 3),
            }
            print(f"served {model}: {served[name]}", flush=True)
        auto = measure_auto(client, own_name, domains, plan.domains)
    return {"served": served, "auto": auto}


def parse_args() -> tuple[argparse.Namespace, Plan]:
    default = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--domains", nargs="+", default=default.domains, help="one adapter each")
    parser.add_argument("--variant", default=default.variant, help="domain of the expert variant")
    parser.add_argument("--minutes", type=float, default=default.tuning.minutes, help="of each training, at most")
    parser.add_argument("--steps", type=int, default=default.tuning.steps, help="of each training, at most")
    parser.add_argument("--rank", type=int, default=default.lora.rank, help="in attention")
    parser.add_argument("--expert-rank", type=int, default=default.lora.expert_rank, help="of experts; 0: none")
    parser.add_argument("--rate", type=float, default=default.lora.rate, help="learning rate of adapters")
    parser.add_argument("--expert-rate", type=float, default=default.experts.rate, help="learning rate of experts")
    parser.add_argument("--share", type=float, default=default.experts.share, help="of choices, of trained experts")
    parser.add_argument("--layers", type=int, default=default.experts.layers, help="last ones, with trained experts")
    parser.add_argument("--seed", type=int, default=default.tuning.seed)
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16, where the processor multiplies it"
    )
    parser.add_argument("--examples", action="store_true", help="train nothing; write the examples of adapters again")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each of one compute thread")
    args = parser.parse_args()
    if args.minutes <= 0 or args.steps < 1 or args.jobs < 1:
        parser.error("--minutes, --steps and --jobs must be positive")
    plan = Plan(
        tuple(args.domains),
        args.variant,
        replace(default.lora, rank=args.rank, expert_rank=args.expert_rank, rate=args.rate),
        replace(default.experts, share=args.share, layers=args.layers, rate=args.expert_rate),
        replace(default.tuning, minutes=args.minutes, steps=args.steps, seed=args.seed),
        args.bfloat16,
    )
    return args, plan


def main() -> None:
    args, plan = parse_args()
    torch.set_num_threads(1)
    try:
        if args.examples:
            write_examples(args.corpus, args.out)
        else:
            train_all(args.corpus, args.out, plan, jobs=args.jobs)
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
