"""The README of the bundled model, written from the measured results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .train import Settings

Results = dict[str, Any]

# domain: source, licence, file under licenses/
SOURCES = {
    "stories": (
        (
            "Pratham Books StoryWeaver (global-asp/pb-source 9ea530d) and African Storybook (global-asp/asp-source "
            "99e0223), the 683 stories under CC BY, each credited in the file; FairytaleQAData a24ddc1 (uci-soe, "
            "fairy books from before 1927); Grimm (PG 2591) and Lang's Blue (503), Red (540), Yellow (640) Fairy Book"
        ),
        "CC BY 4.0; public domain; packaging of FairytaleQA Apache-2.0",
        "CREDITS-stories.txt",
    ),
    "python": (
        "CPython 3.10.13 standard library, without tests and files that carry a third party's notice",
        "PSF-2.0",
        "cpython-3.10-PSF.txt",
    ),
    "legal": ("District of Columbia Code, statute text (DCCouncil/law-xml 9123af0180)", "public domain", ""),
    "drama": ("Shakespeare, Moby text (TheMITTech/shakespeare 6b82db8)", "public domain", ""),
    "recipes": (
        (
            "Cookbooks by Beeton (PG 10136), Leslie (9624), Kitchiner (28681), Child (13493), Burrell (16514) and the "
            "Suffrage Cook Book (26323); ronaldl29/public-domain-recipes 61b488e; LukeSmithxyz/based.cooking 2d8642e"
        ),
        "public domain; Unlicense",
        "public-domain-recipes-Unlicense.txt",
    ),
    "dictionary": ("WordNet 3.0, Princeton University, glosses", "WordNet 3.0 licence", "wordnet-3.0.txt"),
    "math": ("GSM8K, training split only (openai/grade-school-math 3101c7d)", "MIT", "gsm8k-MIT.txt"),
    "shell": (
        "tldr-pages team and contributors (tldr-pages/tldr 08e345f426), English pages, placeholders filled in",
        "CC BY 4.0",
        "tldr-pages-CC-BY-4.0.txt",
    ),
    "medical_qa": (
        "MedQuAD (abachaa/MedQuAD 577bd37), Ben Abacha & Demner-Fushman 2019, the nine subsets with answers",
        "CC BY 4.0",
        "medquad-CC-BY-4.0.txt",
    ),
    "dialogue": (
        "Taskmaster-3 and -4 (google-research-datasets/Taskmaster d92cb6a), Byrne, Ganesh et al., Google",
        "CC BY 4.0",
        "medquad-CC-BY-4.0.txt",
    ),
    "policy": ("18F Handbook 1e495563 and 18F Guides debc24b", "CC0, US government work", "18F-CC0.txt"),
    "chat": ("Questions from templates around passages of the eight domains of plain text", "as those domains", ""),
}


def render(results: Results) -> str:
    """``README.md``, from what ``server.demo.report`` measured."""
    sections = [
        _introduction(results),
        _training(results),
        _perplexity(results),
        _experts(results),
        _turns(results),
        _samples(results),
        _sources(results),
    ]
    return "\n\n".join(sections) + "\n"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fence(text: str) -> str:
    """A code block whose fence no line of the text can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{text}\n{mark}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _introduction(results: Results) -> str:
    moe = results["moe"]
    num_layers = len(results["experts"]["mutual_information_bits"])
    return f"""# The bundled model

<!-- Written by server.demo.report: change server/demo/readme.py, not this file. -->

A Mixture-of-Experts language model of {_millions(moe["parameters"])} parameters, of which a token uses
{_millions(moe["active_parameters"])}: the Qwen3-MoE architecture, {num_layers} layers of
{results["num_experts"]} experts, {results["top_k"]} chosen a token, trained from nothing on {len(results["domains"])}
domains of open text. It is there so that Greenroom can be tried, tested and watched without a download: its experts
differ by domain, so paging has something to do.

**What to expect.** It imitates the form of its domains and knows next to nothing. Names, numbers, sums, laws,
doses and code are made up; nothing it says may be relied on, least of all on medicine or law. The samples below are
the honest picture. All numbers on this page are in [results.json](results.json)."""


def _training(results: Results) -> str:
    run, dense = results["runs"]["moe"], results["runs"]["dense"]
    settings = run["settings"]
    per_epoch = sum(
        domain["train_tokens"] * settings["repeat"].get(name, 1) for name, domain in results["domains"].items()
    )
    same = dense["tokens"] == run["tokens"] and _data_settings(dense) == _data_settings(run)
    order = "the same tokens in the same order" if same else f"{dense['tokens']:,} tokens, **not the same ones**"
    repeated = ", ".join(f"`{name}` {times} times" for name, times in settings["repeat"].items()) or "none"
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
    tokenizer = "--tokenizer server/demo/model/tokenizer.json"
    return f"""## Training

{run["tokens"]:,} tokens in {run["steps"]:,} steps, {run["tokens"] / per_epoch:.1f} epochs (domains taken more
than once an epoch: {repeated}), seed {settings["seed"]}, in rows of {settings["length"]} tokens, the last
{settings["final_share"]:.0%} in rows of {settings["final_length"]}.
Matrices of attention and experts by Muon (peak rate {settings["muon_lr"]:g}), the rest by AdamW
({settings["lr"]:g}); the rate falls linearly over the last {settings["decay"]:.0%}.
Each router has noise of deviation 1/{results["num_experts"]} in its logits, a load-balance loss
(weight {settings["balance_weight"]:g}) taken over whole batches, and a z-loss ({settings["z_weight"]:g}).
The dense model saw {order}.

```bash
pip install 'greenroom[train]'
python -m server.demo.train CORPUS RUN {tokenizer}{_options(settings)}
python -m server.demo.train CORPUS DENSE {tokenizer} --dense{_options(dense["settings"])}
python -m server.demo.export RUN MODEL {tokenizer}
python -m server.demo.report MODEL CORPUS --run RUN --dense DENSE --out REPORT
```

CORPUS is a folder of `DOMAIN.txt` or `DOMAIN.txt.zst` files whose documents end with a line `<|endoftext|>`.
Training goes on where it stopped when it is started again; with the same `--threads` it comes to the same weights,
killed or not.

About 2 % of the documents of each domain are held out, chosen by a hash of their text. A training document that shares
twelve words in a row with a held-out document of another domain is left out.

{table(["domain", "tokens to train on", "held-out tokens", "held-out documents", "documents left out"], rows)}"""


def _data_settings(run: Results) -> list[Any]:
    return [
        run["settings"][name] for name in ("batch_tokens", "length", "final_length", "final_share", "repeat", "seed")
    ]


def _options(settings: Results) -> str:
    """The command-line options that differ from the defaults; that of ``threads`` differs by machine."""
    default = Settings(threads=0)
    options = ""
    for name, value in settings.items():
        if name == "dense" or value == getattr(default, name):
            continue
        words = " ".join(f"{key}={times}" for key, times in value.items()) if isinstance(value, dict) else value
        options += f" --{name.replace('_', '-')} {words}"
    return options


def _perplexity(results: Results) -> str:
    moe, dense = results["moe"], results["dense"]
    rows = [
        [
            f"`{name}`",
            f"{moe['perplexity'][name]:.2f}",
            f"{dense['perplexity'][name]:.2f}",
            f"{moe['perplexity'][name] / dense['perplexity'][name] - 1:+.1%}",
            f"{moe['bits_per_byte'][name]:.3f}",
            f"{dense['bits_per_byte'][name]:.3f}",
        ]
        for name in results["domains"]
    ]
    mean, dense_mean = moe["mean_perplexity"], dense["mean_perplexity"]
    rows.append(["**mean**", f"{mean:.2f}", f"{dense_mean:.2f}", f"{mean / dense_mean - 1:+.1%}", "", ""])
    better = sum(moe["perplexity"][name] < dense["perplexity"][name] for name in results["domains"])
    length = results["runs"]["moe"]["settings"]["final_length"]
    others = "; ".join(
        f"{value:.2f} in rows of {rows}" for rows, value in results["mean_perplexity_by_row_length"].items()
    )
    return f"""## Held-out perplexity

On every held-out token, in rows of {length} tokens that know nothing of those before, bfloat16 weights and float32
arithmetic. The vocabulary has 4,096 tokens of about 3.3 bytes, so compare with other models by bits per byte only. The
dense model has {_millions(dense["parameters"])} parameters, as many as the MoE has active
({_millions(moe["active_parameters"])}). The MoE is better in {better} of {len(results["domains"])} domains. The mean is
taken over the losses of the domains.

{table(["domain", "MoE", "dense", "difference", "MoE bits/byte", "dense bits/byte"], rows)}

Rows of other lengths: mean perplexity {others}."""


def _experts(results: Results) -> str:
    experts = results["experts"]
    most = experts["most_information_bits"]
    numbers = zip(experts["coefficient_of_variation"], experts["mutual_information_bits"], strict=True)
    rows = [
        [str(layer), f"{variation:.3f}", f"{bits:.3f}", f"{bits / most:.0%}"]
        for layer, (variation, bits) in enumerate(numbers)
    ]
    return f"""## Experts

On the same held-out text, each domain counting the same. The coefficient of variation of use is 0 when all experts are
used alike. The mutual information of domain and expert is 0 bits when all domains use experts alike; here it
cannot pass {most:.2f} bits, for a token chooses {results["top_k"]} different experts of
{results["num_experts"]}.

{table(["layer", "coefficient of variation", "mutual information, bits", "of the most possible"], rows)}

![Share of each domain's choices that goes to each expert, by layer](experts.png)"""


def _turns(results: Results) -> str:
    rows = [[f"`{name}`", str(turns["asked"]), str(turns["ended"])] for name, turns in results["turns"].items()]
    sampling = results["sampling"]
    return f"""## Does a turn end by itself?

First turns of held-out chats, answered with at most {sampling["turn_tokens"]} tokens at temperature
{sampling["temperature"]}, top-p {sampling["top_p"]}.

{table(["domain", "asked", "ended by themselves"], rows)}"""


def _samples(results: Results) -> str:
    sampling = results["sampling"]
    parts = [
        f"""## Samples

Uncut, as they came: the first two held-out documents of each domain, temperature {sampling["temperature"]},
top-p {sampling["top_p"]}, seed {sampling["seed"]}, at most {sampling["text_tokens"]} tokens
({sampling["turn_tokens"]} for an answer). Texts are prompted with their first words, chats with their first turn."""
    ]
    for name, samples in results["samples"].items():
        parts.append(f"### {name}")
        for sample in samples:
            end = "Ended by itself." if sample["ended"] else "Stopped at the limit."
            parts += ["Prompt:", fence(sample["prompt"]), "Completion:", fence(sample["completion"]), end]
    return "\n\n".join(parts)


def _sources(results: Results) -> str:
    rows = []
    for name in results["domains"]:
        source, licence, file = SOURCES.get(name, ("not described", "", ""))
        rows.append([f"`{name}`", source, licence, f"[{file}](licenses/{file})" if file else ""])
    return f"""## Sources and attributions

The text was changed: markup removed, quotes and dashes made ASCII, duplicates removed, some of it put into ChatML.
The full text of CC BY 4.0 stands in [medquad-CC-BY-4.0.txt](licenses/medquad-CC-BY-4.0.txt). PG numbers are Project
Gutenberg's, taken from GITenberg; short hashes are commits of GitHub repositories.

{table(["domain", "source", "licence", "notice"], rows)}"""
