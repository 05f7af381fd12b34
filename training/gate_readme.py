"""The README of a trained gate, written from the measured results."""

from __future__ import annotations

from typing import Any

from training.adapters_readme import change
from training.readme_training import table

ARROW, GATE, OWN, MEAN = "Arrow", "gate", "own adapter", "mean of the adapters"
ALL = "all"

Results = dict[str, Any]


def render(results: Results) -> str:
    """``README.md``, from what ``training.train_gate`` measured."""
    parts = [_introduction(results), _training(results), _comparison(results), _served(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    plan, files = results["plan"], results["files"]
    gate = files["gate_model.safetensors"]["bytes"] / 1000
    adapters = sum(file["bytes"] for name, file in files.items() if name.endswith("adapter_model.safetensors")) / 1000
    names = ", ".join(f"`{name}`" for name in plan["domains"])
    return f"""# A mixture of adapters with a trained gate

<!-- Written by training.train_gate: change training/gate_readme.py, not this file. -->

At each linear layer of attention, a gate chooses for each token {plan["shape"]["top_k"]} of the adapters {names}, and
weights them. An adapter's score is the product of the layer's input with a vector of its own; the best ones are added
by the softmax of their scores. The server loads the folder like an adapter, and serves it as a model (docs/api.md,
"Mixtures with a trained gate"). The gate takes {gate:,.0f} kB, its adapters {adapters:,.0f} kB.
Each adapter's folder can be loaded alone, too. All figures are in [results.json](results.json)."""


def _training(results: Results) -> str:
    plan, training = results["plan"], results["training"]
    shape, tuning = plan["shape"], plan["tuning"]
    given = " ".join(f"server/demo/adapters/{name}" for name in plan["adapters"])
    started = "from those of `server/demo/adapters`, without their additions to experts" if given else "from nothing"
    flags = f" \\\n  --adapters {given}" if given else ""
    curve = {int(step): perplexity for step, perplexity in training["curve"].items()}
    before, after = curve[0], curve[training["best_step"]]
    return f"""## Training

```bash
pip install 'greenroom[train]'
python -m training.train_gate CORPUS OUT --minutes {tuning["minutes"]:g}{flags}
```

The base model is frozen. The adapters have rank {shape["rank"]} and begin
{started}.
The gate begins as the least-squares guess of each token's domain. Then both are trained on the loss of the text,
{tuning["rows"]} rows of {tuning["length"]} tokens a step, one of each domain; the peak rate of AdamW is
{shape["rate"]:g}. Training ended after {training["steps"]} steps and {training["seconds"] / 60:.1f} minutes, and kept
the weights of step {training["best_step"]}: the perplexity of training documents that were set aside went from
{before:.2f} to {after:.2f} ({change(before, after)})."""


def _comparison(results: Results) -> str:
    domains, after, before = results["plan"]["domains"], results["after"], results["before"]
    rows = [_row(name, figures, domains) for name, figures in after.items()]
    if before is not None:
        rows += [_row(f"{name}, before this training", before[name], domains) for name in before]
    gate, arrow, mean, base, own = (after[name][ALL] for name in (GATE, ARROW, MEAN, "base model", OWN))
    words = "lower" if gate < arrow else "not lower"
    tokens = sum(results["held_out_tokens"].values())
    return f"""## Held-out perplexity

Of {tokens:,} tokens that neither the model nor the adapters were trained on, in rows of {results["row_tokens"]}.
`Arrow` routes between the same adapters without a trained gate, with the same top-k; `own adapter` knows the domain.
*All* is the perplexity at the mean loss of the domains.

{table(["weights", *(f"`{name}`" for name in domains), ALL], rows)}

The gate's perplexity over all domains is {words} than Arrow's: {gate:.2f} and {arrow:.2f} ({change(arrow, gate)}).
It is {change(base, gate)} against the base model's, and {change(own, gate)} against that of the domains' adapters.
The mean of all adapters for every token, without a router, has {mean:.2f} (the gate: {change(mean, gate)})."""


def _row(name: str, figures: Results, domains: list[str]) -> list[str]:
    return [name, *(f"{figures[domain]:.2f}" for domain in domains), f"{figures[ALL]:.2f}"]


def _served(results: Results) -> str:
    rows = [
        [f"`{name}`", str(each["rows"]), f"{each['served']:.2f}", f"{each['trained']:.2f}"]
        for name, each in results["served"].items()
    ]
    return f"""## Through the server

Perplexity of the first held-out rows of each domain, by the logprobs that the server gives the tokens of a prompt, and
by the module that was trained, with the same files.

{table(["domain", "rows", "served", "trained"], rows)}"""
