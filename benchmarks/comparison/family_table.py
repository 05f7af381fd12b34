"""Table of the families: tokens/s and first tokens of Greenroom beside one peer, with the ratios of their medians."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.comparison.report import is_long, make_rows

NO_FIGURE = "-"


def family_lines(results: Sequence[Mapping[str, Any]], peer: str = "llama.cpp") -> Iterator[str]:
    """Yield a Markdown table of the results of several models; cells are ``Greenroom / peer (ratio)``.

    A ratio is that of speeds, also of first tokens, so that more than 1 is faster. The share of memory bandwidth that
    Greenroom used follows after long contexts. Greenroom's other variants have lines of their own.
    """
    tasks = list(dict.fromkeys(row.task for result in results for row in make_rows(result)))
    yield "| Family | " + " | ".join(tasks) + " |"
    yield "| --- |" + " ---: |" * len(tasks)
    for result in results:
        rows = make_rows(result)
        for engine in dict.fromkeys((row.engine, row.weights) for row in rows if row.is_greenroom):
            name, weights = engine
            own = {row.task: row for row in rows if (row.engine, row.weights) == engine}
            others = {row.task: row for row in rows if row.engine.startswith(f"{peer} ") and row.weights == weights}
            cells = []
            for task in tasks:
                if task not in own:
                    cells.append(NO_FIGURE)
                    continue
                places = 2 if own[task].is_time else 1
                text = f"{own[task].median:.{places}f} / "
                if task in others:
                    ratio = own[task].median / others[task].median
                    ratio = 1 / ratio if own[task].is_time else ratio
                    text += f"{others[task].median:.{places}f} ({ratio:.2f})"
                else:
                    text += NO_FIGURE
                share = own[task].memory_share if is_long(task) else None
                cells.append(text if share is None else f"{text}, {share:.0%}")
            shown = result["model"] + ("" if name.startswith("greenroom ") else f", {name.rpartition(' ')[0]}")
            yield f"| {shown}, {weights} | " + " | ".join(cells) + " |"
