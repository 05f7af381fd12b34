"""The section of the bundled model's README about its training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from training.run_settings import Settings

Results = dict[str, Any]
TOOLS = "tools"  # the domain of generated chats


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Training:
    """One run of ``training.train``, and the domains of its corpus."""

    run: Results
    domains: Results

    @cached_property
    def epoch_tokens(self) -> dict[str, int]:
        """Tokens of each domain in an epoch."""
        repeat = self.run["settings"]["repeat"]
        return {name: domain["train_tokens"] * repeat.get(name, 1) for name, domain in self.domains.items()}

    @property
    def epochs(self) -> float:
        tokens: int = self.run["tokens"]
        return tokens / sum(self.epoch_tokens.values())

    def describe(self) -> str:
        """Say how long the run trained, and with which settings."""
        settings = self.run["settings"]
        repeated = ", ".join(f"`{name}` {times} times" for name, times in settings["repeat"].items()) or "none"
        precision = ", computed in bfloat16" if settings.get("bfloat16") else ""
        tools = ""
        if TOOLS in self.epoch_tokens:
            tools = (
                f" Chats with tools are {self.epoch_tokens[TOOLS] / sum(self.epoch_tokens.values()):.0%} of the tokens."
            )
        return f"""on {self.run["tokens"]:,} tokens in {self.run["steps"]:,} steps, {self.epochs:.1f} epochs
(domains repeated within an epoch: {repeated}), with seed {settings["seed"]}{precision}. Rows have {settings["length"]}
tokens, and in the last {settings["final_share"]:.0%} of the training {settings["final_length"]}. The peak rate of Muon
is {settings["muon_lr"]:g}, that of AdamW {settings["lr"]:g}; the rate falls linearly over the last
{settings["decay"]:.0%}. The weight of the load-balance loss is {settings["balance_weight"]:g}, that of the z-loss
{settings["z_weight"]:g}.{tools}"""


def training_section(results: Results) -> str:
    rows = [
        [
            f"`{name}`",
            f"{domain['train_tokens']:,}",
            f"{domain['held_out_tokens']:,}",
            f"{domain['held_out_documents']:,}",
            f"{domain['left_out_documents']:,}",
        ]
        for name, domain in results["domains"].items()
    ]
    first, *others = _trainings(results)
    story = [f"The model was {'first ' if others else ''}trained {first.describe()}"]
    for number, training in enumerate(others):
        again = "again" if number else "further, with new optimizers,"
        story.append(f"It was then trained {again} {training.describe()}")
    if others:
        tokens = sum(training.run["tokens"] for training in (first, *others))
        epochs = sum(training.epochs for training in (first, *others))
        story.append(f"In all, the model was trained on {tokens:,} tokens, {epochs:.1f} epochs.")
    if changes := results["runs"]["moe"].get("changes"):
        steps = ", ".join(f"{change['step']:,} ({_names(change['before'])})" for change in changes)
        story.append(f"Settings were changed at step {steps}, so the commands below do not give exactly these weights.")
    if "dense" in results["runs"]:
        dense, run = results["runs"]["dense"], results["runs"]["moe"]
        same = dense["tokens"] == run["tokens"] and _data_settings(dense) == _data_settings(run)
        order = "the same tokens in the same order" if same else f"{dense['tokens']:,} tokens, **not the same ones**"
        story.append(f"The dense model for comparison saw {order}.")
    elif others and results["before"]["dense"] is not None:
        story.append("The dense model for comparison saw the tokens of the first training, in the same order.")
    paragraphs = "\n\n".join(story)
    return f"""## Training

{paragraphs}

Muon trains the matrices of attention and experts, AdamW the rest. Each router has noise of deviation
1/{results["num_experts"]} in its logits, a load-balance loss over complete batches, and a z-loss.

```bash
{_commands(results)}
```

CORPUS is a folder of `DOMAIN.txt` or `DOMAIN.txt.zst` files whose documents end with a line `<|endoftext|>`.
If training is interrupted, the same command continues it; with the same `--threads` the weights are the same as
without the interruption.

About 2 % of the documents of each domain are held out, chosen by a hash of their text. Training documents that share
twelve consecutive words with a held-out document of another domain are left out.

{table(["domain", "training tokens", "held-out tokens", "held-out documents", "documents left out"], rows)}"""


def _names(settings: Results) -> str:
    return ", ".join(f"`{name}`" for name in settings)


def earlier_reports(results: Results) -> list[Results]:
    """Return the reports of the trainings before the last one, from the first on."""
    found: list[Results] = []
    before = results.get("before")
    while before is not None:
        found.append(before)
        before = before.get("before")
    return found[::-1]


def _trainings(results: Results) -> list[Training]:
    """Return the trainings that made the model, the last one too."""
    earlier = (Training(each["run"], each["domains"]) for each in earlier_reports(results))
    return [*earlier, Training(results["runs"]["moe"], results["domains"])]


def _commands(results: Results) -> str:
    tokenizer = "--tokenizer server/demo/model/tokenizer.json"
    lines = ["pip install 'greenroom[train]'"]
    corpus, start, before = "CORPUS", "", ""
    for number, training in enumerate(_trainings(results), 1):
        if TOOLS in training.domains and corpus == "CORPUS":
            lines.append("python -m training.tool_chats CORPUS WITH_TOOLS")
            corpus = "WITH_TOOLS"
        options = _options(training.run["settings"])
        lines += [
            f"python -m training.train {corpus} RUN{number} {tokenizer}{start}{options}",
            f"python -m training.export RUN{number} MODEL{number} {tokenizer}",
            f"python -m training.report MODEL{number} {corpus} --run RUN{number}{before} --out REPORT{number}",
        ]
        start, before = f" --start MODEL{number}", f" --before REPORT{number}/results.json"
    if (dense := results["runs"].get("dense")) is not None:
        options = _options(dense["settings"])
        lines.insert(-1, f"python -m training.train {corpus} DENSE {tokenizer} --dense{options}")
        lines[-1] += " --dense DENSE"
    return "\n".join(lines)


def _data_settings(run: Results) -> list[Any]:
    return [
        run["settings"][name] for name in ("batch_tokens", "length", "final_length", "final_share", "repeat", "seed")
    ]


def _options(settings: Results) -> str:
    """The command-line options that differ from the defaults; that of ``threads`` differs by machine."""
    default = Settings(threads=0)
    options = ""
    for name, value in settings.items():
        if name in ("dense", "start") or value == getattr(default, name):
            continue
        if isinstance(value, bool):
            options += f" --{name.replace('_', '-')}"
            continue
        words = " ".join(f"{key}={times}" for key, times in value.items()) if isinstance(value, dict) else value
        options += f" --{name.replace('_', '-')} {words}"
    return options
