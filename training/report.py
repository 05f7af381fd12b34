"""Measures the bundled model and writes ``results.json``, ``experts.png`` and ``README.md``.

    python -m training.report MODEL CORPUS --run RUN --dense DENSE_RUN --out server/demo

MODEL is the export of RUN by ``training.export``; DENSE_RUN is the run of ``train --dense``. ``--before`` names the
``results.json`` of the model that RUN started from; its figures are for the same held-out text, and stand beside the
new ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from training import measure, samples, tool_calls
from training.architecture import count_parameters
from training.corpus import Domain, read_corpus
from training.errors import DemoError, RunError
from training.export import load_run
from training.picture import draw_shares
from training.readme import render
from training.train import CHANGES

OTHER_LENGTHS = (256, 512, 2048)  # row lengths in tokens


def describe_run(run: Path) -> dict[str, Any]:
    """Return the settings of a run and its progress."""
    settings = run / "settings.json"
    if not settings.is_file():
        raise RunError(f"{run} has no settings.json; run its training command again, which writes it")
    progress = torch.load(run / "state.pt", weights_only=True)["state"]
    changes = run / CHANGES
    return {
        "settings": json.loads(settings.read_text()),
        "changes": [json.loads(line) for line in changes.read_text().splitlines()] if changes.exists() else [],
        "steps": progress["step"],
        "tokens": progress["tokens"],
    }


def describe_domain(domain: Domain) -> dict[str, int]:
    return {
        "train_documents": len(domain.train),
        "train_tokens": sum(map(len, domain.train)),
        "held_out_documents": len(domain.held_out),
        "held_out_tokens": sum(map(len, domain.held_out)),
        "left_out_documents": domain.dropped,
    }


def describe_model(model: PreTrainedModel) -> dict[str, int]:
    total, active = count_parameters(model)
    return {"parameters": total, "active_parameters": active}


def measure_loss(held: dict[str, measure.Held]) -> dict[str, Any]:
    return {
        "perplexity": {name: each.perplexity for name, each in held.items()},
        "bits_per_byte": {name: each.bits_per_byte for name, each in held.items()},
        "mean_perplexity": measure.mean_perplexity(list(held.values())),
    }


def measure_experts(shares: measure.Shares, top_k: int) -> dict[str, Any]:
    _, num_domains, num_experts = shares.shape
    return {
        "coefficient_of_variation": [measure.variation(layer) for layer in shares],
        "mutual_information_bits": [measure.mutual_information(layer) for layer in shares],
        "most_information_bits": measure.most_information(num_domains, num_experts, top_k),
        "shares": shares.round(5).tolist(),
    }


def describe_before(path: Path, domains: list[Domain]) -> dict[str, Any]:
    """Return the figures of an earlier report, which must be about the same held-out text.

    Those of the reports before it are its own ``before``.
    """
    try:
        old = json.loads(path.read_text())
        run, before = old["runs"]["moe"], old.get("before")
        found = {
            "run": run,
            "domains": old["domains"],
            **{name: old["moe"][name] for name in ("perplexity", "mean_perplexity")},
            "dense": old.get("dense") or (before and before["dense"]),
            "information": old["experts"]["mutual_information_bits"],
            "before": before,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"--before {path} is no results.json of an earlier report: {error!r}") from error
    held_out = {domain.name: sum(map(len, domain.held_out)) for domain in domains}
    for name, domain in found["domains"].items():
        if held_out.get(name) != domain["held_out_tokens"]:
            raise RunError(f"--before {path} was measured on other held-out text of the domain {name!r}")
    return found


def measure_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, domains: list[Domain]
) -> dict[str, Any]:
    """Return samples of each domain, and the number of chat turns that ended by themselves."""
    drawn = {domain.name: samples.sample_domain(model, tokenizer, domain) for domain in domains}
    return {
        "turns": {
            domain.name: {"asked": len(drawn[domain.name]), "ended": sum(each.ended for each in drawn[domain.name])}
            for domain in domains
            if samples.is_chat(domain)
        },
        "sampling": {
            "temperature": model.generation_config.temperature,
            "top_p": model.generation_config.top_p,
            "seed": samples.SEED,
            "text_tokens": samples.TEXT_TOKENS,
            "turn_tokens": samples.TURN_TOKENS,
        },
        "samples": {name: [asdict(each) for each in some[: samples.SAMPLES]] for name, some in drawn.items()},
    }


def measure_domains(model: PreTrainedModel, domains: list[Domain], length: int) -> dict[str, measure.Held]:
    held = {}
    for domain in domains:
        held[domain.name] = measure.measure(model, domain, length)
        perplexity = held[domain.name].perplexity
        print(f"{model.config.model_type} rows of {length}: {domain.name} {perplexity:.2f}", flush=True)
    return held


def write_report(
    model_folder: Path, corpus: Path, run: Path, out: Path, *, dense_run: Path | None = None, before: Path | None = None
) -> None:
    """Measure the models on all held-out text, and write the three files to ``out``."""
    runs = {"moe": describe_run(run)}
    if dense_run is not None:
        runs["dense"] = describe_run(dense_run)
    length = runs["moe"]["settings"]["final_length"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    domains = read_corpus(corpus, Tokenizer.from_file(str(model_folder / "tokenizer.json")))
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    earlier = describe_before(before, domains) if before is not None else None

    held = measure_domains(model, domains, length)
    shares = measure.expert_shares(list(held.values()))  # (layers, domains, experts)
    others = {
        str(rows): measure.mean_perplexity(list(measure_domains(model, domains, rows).values()))
        for rows in OTHER_LENGTHS
    }
    results = {
        "runs": runs,
        "domains": {domain.name: describe_domain(domain) for domain in domains},
        "moe": {**describe_model(model), **measure_loss(held)},
        "mean_perplexity_by_row_length": others,
        "num_experts": model.config.num_experts,
        "top_k": model.config.num_experts_per_tok,
        "experts": measure_experts(shares, model.config.num_experts_per_tok),
        **measure_samples(model, tokenizer, domains),
    }
    if dense_run is not None:
        dense = load_run(dense_run)
        results["dense"] = {**describe_model(dense), **measure_loss(measure_domains(dense, domains, length))}
    if earlier is not None:
        results["before"] = earlier
        shared = [index for index, domain in enumerate(domains) if domain.name in earlier["domains"]]
        results["experts"]["information_on_domains_of_before"] = [
            measure.mutual_information(layer[shared]) for layer in shares
        ]
    chats = [text for domain in domains if domain.name == tool_calls.DOMAIN for text in domain.held_out_texts]
    if chats:
        results["calls"] = tool_calls.measure_calls(model_folder, chats)
    out.mkdir(parents=True, exist_ok=True)
    draw_shares(shares, list(held), results["experts"]["mutual_information_bits"], out / "experts.png")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(render(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--dense", type=Path, help="the run of the dense model")
    parser.add_argument("--before", type=Path, help="results.json of the model that the run started from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        write_report(args.model, args.corpus, args.run, args.out, dense_run=args.dense, before=args.before)
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
