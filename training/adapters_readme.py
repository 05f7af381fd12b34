"""The README of the bundled adapters and the bundled variant, written from the measured results."""

from __future__ import annotations

from functools import partial
from typing import Any

from server.model.checkpoint.locate import BUNDLED_NAME
from training.auto_choice import CHARACTERS
from training.readme_training import table

Results = dict[str, Any]


def render(results: Results) -> str:
    """``README.md``, from what ``training.train_adapters`` measured."""
    return (
        "\n\n".join([_introduction(results), _training(results), _others(results), _served(results), _auto(results)])
        + "\n"
    )


def change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f}%"


def _entries(results: Results) -> dict[str, tuple[str, Results]]:
    """All files that were trained, by title: their domain and figures."""
    return {
        **{f"adapter `{name}`": (name, entry) for name, entry in results["adapters"].items()},
        **{f"variant `{name}`": (name, entry) for name, entry in results["variants"].items()},
    }


def _kilobytes(entry: Results) -> str:
    weights = next(file for name, file in entry["files"].items() if name.endswith(".safetensors"))
    return f"{weights['bytes'] / 1000:,.0f} kB"


def _reason(training: Results, tuning: Results) -> str:
    """The limit that ended a training."""
    if training["seconds"] >= tuning["minutes"] * 60:
        return "time"
    return "steps" if training["steps"] >= tuning["steps"] else "validation loss"


def _introduction(results: Results) -> str:
    rows = []
    for title, (domain, entry) in _entries(results).items():
        own = entry["perplexity"][domain]
        rows.append(
            [
                title,
                _kilobytes(entry),
                f"{own['tokens']:,}",
                f"{own['before']:.2f}",
                f"{own['after']:.2f}",
                change(own["before"], own["after"]),
            ]
        )
    head = ["weights", "size", "held-out tokens", "perplexity of the base model", "with it", "change"]
    return f"""# Adapters and an expert variant of the bundled model

<!-- Written by training.train_adapters: change training/adapters_readme.py, not this file. -->

Each of these LoRA adapters was trained on one domain of the bundled model's corpus. The expert variant
(`server/demo/variants`) has other weights for a few experts, those that its domain uses most. `greenroom serve` without
a model loads the adapters, and can load the variant. They show how such weights are served; as the model itself, they
know nothing. Perplexity is that of all held-out text of the own domain, which neither the model nor the adapter was
trained on, in rows of {results["row_tokens"]} tokens. All figures are in [results.json](results.json).

{table(head, rows)}"""


def _training(results: Results) -> str:
    plan = results["plan"]
    tuning, lora, experts = plan["tuning"], plan["lora"], plan["experts"]
    rows = []
    for title, (_, entry) in _entries(results).items():
        training = entry["training"]
        rows.append(
            [
                title,
                f"{training['tokens']:,}",
                str(training["steps"]),
                str(training["best_step"]),
                f"{training['seconds'] / 60:.1f} min",
                _reason(training, tuning),
            ]
        )
    minutes = f"{tuning['minutes']:g}"
    dtype, flag = ("bfloat16", " --bfloat16") if plan["bfloat16"] else ("float32", "")
    of_experts = f", and {lora['expert_rank']} on both matrices of every expert" if lora["expert_rank"] else ""
    chosen = "; ".join(
        f"layer {layer}: {', '.join(map(str, some['experts']))} ({100 * some['share']:.0f} % of the choices)"
        for entry in results["variants"].values()
        for layer, some in entry["experts"].items()
    )
    return f"""## Training

```bash
pip install 'greenroom[train]'
python -m training.train_adapters CORPUS server/demo --steps {tuning["steps"]} --minutes {minutes}{flag}
```

The adapters have rank {lora["rank"]} on the matrices of attention{of_experts}
(PEFT, alpha/rank {lora["scale"]:g}).
The variant is expert-specialised fine-tuning (ESFT, arXiv 2407.01906). In each of the last {experts["layers"]} layers
the smallest set of experts is trained that get {100 * experts["share"]:.0f} % or more of the router's choices on
training text of the domain; the routers and everything else are frozen. The chosen experts:
{chosen}.

A step has {tuning["rows"]} rows of {tuning["length"]} tokens. The peak rate of AdamW is {lora["rate"]:g} for adapters
and {experts["rate"]:g} for experts, and falls to zero; the seed is {tuning["seed"]}. Weights are trained in float32,
beside a model that computes in {dtype}. Every {tuning["eval_every"]} steps the loss is measured on
{tuning["validation_tokens"]:,} tokens of training documents that are set aside, and the weights with the lowest loss
are kept, in bfloat16. Training ends after {tuning["steps"]} steps, after {minutes} minutes, or when the last
{tuning["patience"]} measurements have brought no lower loss. The same command trains as well again, but not to the same
bits: sums are rounded in another order, and {minutes} minutes are more steps on a faster machine.

{table(["weights", "tokens", "steps", "best step", "time", "ended by"], rows)}"""


def _ratio(entry: Results, domain: str) -> float:
    figures = entry["perplexity"][domain]
    return float(figures["after"] / figures["before"])


def _others(results: Results) -> str:
    entries = _entries(results)
    domains = next(iter(entries.values()))[1]["perplexity"]
    rows = []
    for domain in domains:
        row = [f"`{domain}`"]
        for own, entry in entries.values():
            text = change(entry["perplexity"][domain]["before"], entry["perplexity"][domain]["after"])
            row.append(f"**{text}**" if own == domain else text)
        rows.append(row)
    num_best = sum(min(entry["perplexity"], key=partial(_ratio, entry)) == own for own, entry in entries.values())
    names = list(results["adapters"])
    pairs = ", ".join(
        f"{results['distances'][a][b]:.2f} for `{a}` and `{b}`" for i, a in enumerate(names) for b in names[i + 1 :]
    )
    every = [value for name, some in results["distances"].items() for other, value in some.items() if name < other]
    return f"""## Other domains

Change of the perplexity by domain, on the first {results["other_tokens"]:,} held-out tokens, or on all of them for the
own domain (bold). It falls most for the own domain with {num_best} of {len(entries)} files.

{table(["domain", *entries], rows)}

The base model's routers tell the chosen domains apart: the Jensen-Shannon divergence of their use of experts, as a mean
over layers, is {pairs} bits.
The mean of all pairs of domains is {sum(every) / len(every):.2f}."""


def _served(results: Results) -> str:
    rows = [
        [
            f"`greenroom-demo{name}`" if name.startswith(":") else f"`{name}`",
            f"`{entry['domain']}`",
            f"{entry['base']:.2f}",
            f"{entry['served']:.2f}",
            f"{entry['trained']:.2f}",
        ]
        for name, entry in results["served"].items()
    ]
    rows_each = next(iter(results["served"].values()))["rows"]
    return f"""## Through the server

Perplexity of the first {rows_each} held-out rows of the domain, by the logprobs that the server gives the tokens of a
prompt, and by transformers and PEFT with the same files.

{table(["model", "domain", "base model, served", "served", "transformers and PEFT"], rows)}"""


def _auto(results: Results) -> str:
    auto = results["auto"]
    counts = {name: sum(chosen.values()) for name, chosen in auto["chosen"].items()}
    own = [name for name in auto["chosen"] if name in results["adapters"]]
    others = [name for name in auto["chosen"] if name not in own]

    def right(names: list[str]) -> str:
        num_right = sum(auto["chosen"][name].get(name if name in own else BUNDLED_NAME, 0) for name in names)
        return f"{num_right} of {sum(counts[name] for name in names)}"

    rows = [
        [f"`{name}`", str(counts[name]), ", ".join(f"`{model}` {count}" for model, count in chosen.items())]
        for name, chosen in auto["chosen"].items()
    ]
    base, chosen = auto["perplexity"]["base"], auto["perplexity"]["auto"]
    return f"""## The model `auto`

Held-out passages of up to {CHARACTERS} characters were sent to the model `auto`. For the domains of the adapters it
chose the right adapter for {right(own)} passages. Their perplexity is {chosen:.2f} with the chosen models and
{base:.2f} with the base model ({change(base, chosen)}; {auto["tokens"]:,} tokens). For passages of the other domains it
chose the base model for {right(others)}.

{table(["domain", "passages", "chosen"], rows)}{_chats(auto.get("chats"))}"""


def _chats(chats: dict[str, dict[str, int]] | None) -> str:
    """Return what ``auto`` chose for chats; empty without any, as of other domains."""
    if chats is None:
        return ""
    rows = [[kind, str(found["chats"]), str(found["right"])] for kind, found in chats.items()]
    right, count = (sum(found[name] for found in chats.values()) for name in ("right", "chats"))
    return f"""

For {right} of {count} short chats ([written by hand](../auto_chats.py)) the choice was right for the user's last turn.

{table(["last turn", "chats", "right"], rows)}"""
