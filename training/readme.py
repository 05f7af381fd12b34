"""The README of the bundled model, written from the measured results."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from training.readme_training import Results, earlier_reports, table, training_section
from training.sources import SOURCES


def render(results: Results) -> str:
    """``README.md``, from what ``training.report`` measured."""
    sections = [
        _introduction(results),
        training_section(results),
        _perplexity(results),
        _experts(results),
        _turns(results),
        *([_calls(results)] if results.get("calls") else []),
        _samples(results),
        _sources(results),
    ]
    return "\n\n".join(sections) + "\n"


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

<!-- Written by training.report: change training/readme.py, not this file. -->

This Mixture-of-Experts language model has {_millions(moe["parameters"])} parameters, of which a token uses
{_millions(moe["active_parameters"])}. It has the Qwen3-MoE architecture with {num_layers} layers of
{results["num_experts"]} experts, top-{results["top_k"]}, and was trained from scratch on {len(results["domains"])}
domains of text. With it you can try and test Greenroom without a download. Its experts differ by domain, so
expert paging has an effect.

**What to expect.** The model imitates the style of its domains and knows next to nothing. It makes up names, numbers,
sums, laws, doses and code. Do not rely on anything it says, least of all on medicine or law. The samples below are
not selected. All numbers on this page are in [results.json](results.json)."""


def _perplexity(results: Results) -> str:
    moe, before = results["moe"], results.get("before")
    dense = results.get("dense") or (before and before["dense"])
    length = results["runs"]["moe"]["settings"]["final_length"]
    others = {title: other for title, other in {"before": before, "dense": dense}.items() if other is not None}
    domains = list(results["domains"])
    shared = [name for name in domains if all(name in other["perplexity"] for other in others.values())]
    head = ["domain", "perplexity", "bits/byte", *(text for title in others for text in (title, "difference"))]
    rows = [_row(f"`{name}`", f"{moe['bits_per_byte'][name]:.3f}", moe, others.values(), [name]) for name in domains]
    rows.append(_row("**mean**", "", moe, others.values(), domains))
    if len(shared) < len(domains):
        rows.append(_row("**mean of the domains of all models**", "", moe, others.values(), shared))
    text = [
        f"""The perplexity covers every held-out token, in independent rows of {length} tokens, with bfloat16 weights
and float32 arithmetic. The vocabulary has 4,096 tokens of about 3.3 bytes, so compare with other models only by bits
per byte. A mean is that of the domains' losses."""
    ]
    if before is not None:
        text.append("The column *before* is the model before its last training, on the same text.")
    if dense is not None:
        text.append(_about_dense(results, dense))
    lengths = "; ".join(
        f"{value:.2f} in rows of {rows}" for rows, value in results["mean_perplexity_by_row_length"].items()
    )
    paragraphs = "\n\n".join(text)
    return f"""## Held-out perplexity

{paragraphs}

{table(head, rows)}

The mean perplexity with other row lengths is {lengths}."""


def _mean(measured: Results, domains: list[str]) -> float:
    return math.exp(sum(math.log(measured["perplexity"][name]) for name in domains) / len(domains))


def _row(title: str, bits: str, moe: Results, others: Iterable[Results], domains: list[str]) -> list[str]:
    """Return a row of the table: the mean perplexity over domains, beside that of the models that know them all."""
    value = _mean(moe, domains)
    row = [title, f"{value:.2f}", bits]
    for other in others:
        known = all(name in other["perplexity"] for name in domains)
        row += [f"{_mean(other, domains):.2f}", f"{value / _mean(other, domains) - 1:+.1%}"] if known else ["", ""]
    return row


def _about_dense(results: Results, dense: Results) -> str:
    """Say on which terms the dense model is compared."""
    size = f"""The dense model has {_millions(dense["parameters"])} parameters, as many as the MoE has active
({_millions(results["moe"]["active_parameters"])})."""
    moe, when = (
        (results["moe"], "") if "dense" in results else (earlier_reports(results)[0], " after the first training")
    )
    better = sum(moe["perplexity"][name] < value for name, value in dense["perplexity"].items())
    terms = f"With as many tokens,{when} the MoE is better in {better} of {len(dense['perplexity'])} domains."
    if "dense" not in results:
        terms += " The dense model was not trained on, so its column has fewer tokens than the first."
    return f"{size} {terms}"


def _experts(results: Results) -> str:
    experts = results["experts"]
    most = experts["most_information_bits"]
    numbers = zip(experts["coefficient_of_variation"], experts["mutual_information_bits"], strict=True)
    rows = [
        [str(layer), f"{variation:.3f}", f"{bits:.3f}", f"{bits / most:.0%}"]
        for layer, (variation, bits) in enumerate(numbers)
    ]
    head = ["layer", "coefficient of variation", "mutual information, bits", "share of the maximum"]
    compared = ""
    if before := results.get("before"):
        head += ["on the domains of before", "before"]
        for row, *values in zip(rows, experts["information_on_domains_of_before"], before["information"], strict=True):
            row += [f"{value:.3f}" for value in values]
        compared = (
            " The last two columns compare the mutual information with that before the last training, on the domains "
            "that both models have seen."
        )
    return f"""## Experts

These figures are for the same held-out text, with equal weight for each domain. The coefficient of variation of expert
use is 0 if all experts are used equally. The mutual information of domain and expert is 0 bits if all domains use the
experts alike; its maximum is {most:.2f} bits here, because a token chooses {results["top_k"]} different experts of
{results["num_experts"]}.{compared}

{table(head, rows)}

![Share of each domain's router choices for each expert, by layer](experts.png)"""


def _turns(results: Results) -> str:
    rows = [[f"`{name}`", str(turns["asked"]), str(turns["ended"])] for name, turns in results["turns"].items()]
    sampling = results["sampling"]
    return f"""## Answers that end by themselves

The model answers the first turns of held-out chats with at most {sampling["turn_tokens"]} tokens at temperature
{sampling["temperature"]}, top-p {sampling["top_p"]}. An answer ends by itself if it stops before that limit.

{table(["domain", "answers", "ended by themselves"], rows)}"""


def _calls(results: Results) -> str:
    rows = [
        [title, *(str(counts[name]) for name in ("asked", "called", "valid", "right_tools", "right_arguments"))]
        for title, counts in results["calls"].items()
    ]
    head = ["`tool_choice`", "chats", "with calls", "valid", "the right tools", "and the right arguments"]
    return f"""## Tool calls

The model answers held-out chats with tools over the server, with the sampling of its checkpoint. A call is *valid* if
its arguments are JSON, it names a listed tool, and the arguments follow the tool's schema. The last two columns count
the answers with exactly the calls of the held-out chat, or none if it has none. All of these chats were generated;
expect less of tools that are described in other words.

{table(head, rows)}"""


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
