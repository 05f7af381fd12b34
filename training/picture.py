"""Draws the share of each domain's choices that goes to each expert."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from training.measure import Shares

COLUMNS = 3


def draw_shares(shares: Shares, domains: list[str], information: list[float], path: Path) -> None:
    """Draw P(expert | domain) as one heat map per layer, from ``(layers, domains, experts)``."""
    num_layers, _, num_experts = shares.shape
    columns = min(COLUMNS, num_layers)
    figure = Figure(figsize=(4.2 * columns + 1.2, 3.1 * -(-num_layers // columns)), dpi=100, layout="constrained")
    grid = figure.subplots(-(-num_layers // columns), columns, sharex=True, sharey=True, squeeze=False)
    for layer, axes in enumerate(grid.flat):
        if layer >= num_layers:
            axes.set_visible(False)
            continue
        image = axes.imshow(shares[layer], cmap="magma", vmin=0, vmax=shares.max(), aspect="auto")
        axes.set_title(f"layer {layer}: {information[layer]:.2f} bits", fontsize=10)
        axes.set_xticks(range(num_experts), [str(expert) for expert in range(num_experts)], fontsize=7)
        axes.set_yticks(range(len(domains)), domains, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("expert", fontsize=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.8)
    bar.set_label(f"share of the domain's choices (even: {1 / num_experts:.3f})", fontsize=9)
    figure.savefig(path)
