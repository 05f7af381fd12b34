"""The README of the bundled model, written from the measured results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from server.demo.run_settings import Settings

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

This Mixture-of-Experts language model has {_millions(moe["parameters"])} parameters, of which a token uses
{_millions(moe["active_parameters"])}. It has the Qwen3-MoE architecture with {num_layers} layers of
{results["num_experts"]} experts, top-{results["top_k"]}, and was trained from scratch on {len(results["domains"])}
domains of open text. With it you can try and test Greenroom without a download. Its experts differ by domain, so
expert paging has an effect.

**What to expect.** The model imitates the style of its domains and knows next to nothing. It makes up names, numbers,
sums, laws, doses and code. Do not rely on anything it says, least of all on medicine or law. The samples below are
not selected. All numbers on this page are in [results.json](results.json)."""


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

The model was trained on {run["tokens"]:,} tokens in {run["steps"]:,} steps, {run["tokens"] / per_epoch:.1f} epochs
(domains repeated within an epoch: {repeated}), with seed {settings["seed"]}. Rows have {settings["length"]} tokens, and
in the last {settings["final_share"]:.0%} of the training {settings["final_length"]}.
Muon trains the matrices of attention and experts (peak rate {settings["muon_lr"]:g}), AdamW the rest
({settings["lr"]:g}); the rate falls linearly over the last {settings["decay"]:.0%}.
Each router has noise of deviation 1/{results["num_experts"]} in its logits, a load-balance loss
(weight {settings["balance_weight"]:g}) over complete batches, and a z-loss ({settings["z_weight"]:g}).
The dense model for comparison saw {order}.

```bash
pip install 'greenroom[train]'
python -m server.demo.train CORPUS RUN {tokenizer}{_options(settings)}
python -m server.demo.train CORPUS DENSE {tokenizer} --dense{_options(dense["settings"])}
python -m server.demo.export RUN MODEL {tokenizer}
python -m server.demo.report MODEL CORPUS --run RUN --dense DENSE --out REPORT
```

CORPUS is a folder of `DOMAIN.txt` or `DOMAIN.txt.zst` files whose documents end with a line `<|endoftext|>`.
If training is interrupted, the same command continues it; with the same `--threads` the weights are the same as
without the interruption.

About 2 % of the documents of each domain are held out, chosen by a hash of their text. Training documents that share
twelve consecutive words with a held-out document of another domain are left out.

{table(["domain", "training tokens", "held-out tokens", "held-out documents", "documents left out"], rows)}"""


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

The perplexity covers every held-out token, in independent rows of {length} tokens, with bfloat16 weights and float32
arithmetic. The vocabulary has 4,096 tokens of about 3.3 bytes, so compare with other models only by bits per byte. The
dense model has {_millions(dense["parameters"])} parameters, as many as the MoE has active
({_millions(moe["active_parameters"])}). The MoE is better in {better} of {len(results["domains"])} domains. The mean is
that of the domains' losses.

{table(["domain", "MoE", "dense", "difference", "MoE bits/byte", "dense bits/byte"], rows)}

The mean perplexity with other row lengths is {others}."""


def _experts(results: Results) -> str:
    experts = results["experts"]
    most = experts["most_information_bits"]
    numbers = zip(experts["coefficient_of_variation"], experts["mutual_information_bits"], strict=True)
    rows = [
        [str(layer), f"{variation:.3f}", f"{bits:.3f}", f"{bits / most:.0%}"]
        for layer, (variation, bits) in enumerate(numbers)
    ]
    return f"""## Experts

These figures are for the same held-out text, with equal weight for each domain. The coefficient of variation of expert
use is 0 if all experts are used equally. The mutual information of domain and expert is 0 bits if all domains use the
experts alike; its maximum is {most:.2f} bits here, because a token chooses {results["top_k"]} different experts of
{results["num_experts"]}.

{table(["layer", "coefficient of variation", "mutual information, bits", "share of the maximum"], rows)}

![Share of each domain's router choices for each expert, by layer](experts.png)"""


def _turns(results: Results) -> str:
    rows = [[f"`{name}`", str(turns["asked"]), str(turns["ended"])] for name, turns in results["turns"].items()]
    sampling = results["sampling"]
    return f"""## Answers that end by themselves

The model answers the first turns of held-out chats with at most {sampling["turn_tokens"]} tokens at temperature
{sampling["temperature"]}, top-p {sampling["top_p"]}. An answer ends by itself if it stops before that limit.

{table(["domain", "answers", "ended by themselves"], rows)}"""


def _samples(results: Results) -> str:
    sampling = results["sampling"]
    parts = [
        f"""## Samples

These are unedited completions of the first two held-out documents of each domain, at temperature
{sampling["temperature"]}, top-p {sampling["top_p"]}, seed {sampling["seed"]}, with at most
{sampling["text_tokens"]} tokens ({sampling["turn_tokens"]} for an answer). The prompt of a text is its first words,
that of a chat its first turn."""
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

The text was changed: markup and duplicates are removed, quotes and dashes are ASCII, and some of it is in ChatML
format. The full text of CC BY 4.0 is in [medquad-CC-BY-4.0.txt](licenses/medquad-CC-BY-4.0.txt). PG numbers are Project
Gutenberg's, taken from GITenberg; short hashes are commits of GitHub repositories.

{table(["domain", "source", "licence", "notice"], rows)}"""
