"""Writes docs/routers.md and its pictures from the results of the comparison of routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

TITLES = {
    "digits": "Images: scikit-learn's digits (10 classes, 16 patches)",
    "domains": "Text: the domains of the bundled model's corpus (12 classes, 16 tokens)",
}
NUM_COLOURS = 10  # of matplotlib's default cycle
HEAD = """# Routers

A router decides which experts see which tokens. This page compares those that Greenroom knows, on two small tasks of
classification, by their quality and by what they cost a server that pages experts. `python -m training.compare_routers`
trains all of them and writes it.

| router | a token goes to | depends on other tokens | experts of a pass | may be in |
| --- | --- | --- | --- | --- |
| top-k | its k best experts | no | as the tokens choose | decoders, encoders |
| Switch | its best expert | no | as the tokens choose | decoders, encoders |
| Switch, capacity | its best expert, if that has room | on its batch | as the tokens choose | training, encoders |
| expert choice | the experts that choose it, or none | on its sequence | all | encoders |
| Soft MoE | a mixture of all slots | on its sequence | all | encoders |

Formulas, shapes and sources are in `server/model/routers/`, one module for each. `server/model/greenroom_moe/` has a
decoder and two encoders with any of them, as classes of transformers. Greenroom serves the decoder with top-k and
Switch, and refuses one whose router sees later tokens. It serves the encoders with all of them
([models.md](models.md#encoders)). The bundled classifier is the text encoder with the best accuracy, Switch
with balance and z-loss, trained with a capacity of 1.25 and served without one: 80.5 % of the same held-out pieces.

Each model has two layers of width 48, eight experts, and the same products for each token: two experts of width 48, or
one of 96 (dense, Switch), or two slots a token (Soft MoE). One seed each, so differences below a point mean little.
- **variation** is the standard deviation of tokens by expert over their mean, **max/mean** those of the busiest expert;
  both are means of the layers over the held-out examples. **dead** counts experts without a token.
- **dropped** is the share of tokens that no expert took. **moved by company** is the share of examples whose label
  changes with the other examples of their batch.
- **experts** are those that a pass over one example touches in a layer, and **paged** is what a request reads if none
  of them is in memory, in bfloat16.
"""
COLUMNS = "router | accuracy | variation | max/mean | dead | dropped | moved by company | experts | paged | CPU seconds"


def write_page(results: Mapping[str, Rows], docs: Path) -> None:
    """Write ``routers.md`` and a picture of the losses for each task."""
    parts = [HEAD]
    for task, rows in results.items():
        picture = docs / "images" / f"routers-{task}.svg"
        draw_curves(rows, picture)
        parts.append(f"\n## {TITLES[task]}\n\n{table(rows)}\n![Training loss by step](images/{picture.name})\n")
    (docs / "routers.md").write_text("".join(parts))


def table(rows: Rows) -> str:
    """Return the results as a table of Markdown."""
    lines = [f"| {COLUMNS} |", f"|{' --- |' * len(COLUMNS.split('|'))}"]
    for row in rows:
        cells = (
            row["variant"],
            f"{100 * row['accuracy']:.1f} %",
            f"{row['cv']:.2f}",
            f"{row['max_over_mean']:.1f}",
            row["dead"],
            f"{100 * row['dropped']:.1f} %",
            f"{100 * row['moved_by_company']:.1f} %",
            f"{row['experts_touched']:.1f}",
            f"{row['bytes_paged'] / 1024:.0f} KiB",
            f"{row['seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def draw_curves(rows: Rows, path: Path) -> None:
    """Draw the training losses of all variants over the steps, on a logarithmic scale."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        steps, losses = zip(*row["curve"], strict=True)
        style = "--" if number >= NUM_COLOURS else "-"
        axes.plot(steps, losses, style, label=row["variant"], linewidth=1.2)
    axes.set(xlabel="step", ylabel="training loss (cross entropy)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper right")
    figure.savefig(path, metadata={"Date": None})
