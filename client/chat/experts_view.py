"""The output of `/experts`: a summary of a model's experts."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.experts import ExpertMap
from client.terminal import hit_ratio_text, printable, size_text

NUM_HOTTEST = 8


def experts_view(experts: ExpertMap) -> RenderableType:
    """Return tiers, the hit ratio and its optimum, and the most used experts."""
    table = Table("tier", "resident", "size", "budget", "pinned", box=None, padding=(0, 2, 0, 0))
    for name, tier in experts.tiers.items():
        table.add_row(
            printable(name),
            f"{tier.num_resident:,} of {tier.num_slots:,} slots",
            size_text(tier.resident_bytes),
            size_text(tier.budget_bytes),
            str(tier.num_pinned),
        )
    table.add_row("disk", f"{experts.num_experts:,}", size_text(experts.total_bytes), "", "")
    hottest = ", ".join(f"{each.layer}/{each.expert} ({each.tokens:,})" for each in experts.hottest(NUM_HOTTEST))
    return Group(
        table,
        Text(
            f"{hit_ratio_text(experts.hit_ratio, experts.optimal_hit_ratio)} · "
            f"{size_text(experts.loaded_bytes)} read · {experts.stall_seconds:.1f} s stalled"
        ),
        Text(f"most used, as layer/expert (tokens): {hottest}"),
    )
