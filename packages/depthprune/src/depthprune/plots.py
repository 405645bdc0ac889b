"""The pictures of a report, each saved as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from edge_shared.report import COLOURS, figure

from depthprune.latency import Comparison
from depthprune.merging import Certificate

STAYS, GONE, AFTER, BEFORE = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[7]


def entropy_bars(folder: Path, name: str, entropies: dict[str, float], removed: set[str]) -> str:
    """Entropy per activation of the dense network; removed ones in another colour."""
    from matplotlib.patches import Patch

    names = list(entropies)
    with figure(folder, name, size=(7, 1.2 + 0.27 * len(names))) as axes:
        axes.barh(range(len(names)), [entropies[n] for n in names], color=[GONE if n in removed else STAYS for n in names])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_xlim(0, 1)
        axes.set_title("How often neurons switch, per activation")
        axes.set_xlabel("mean ON/OFF entropy in the dense network (bits)")
        handles = [Patch(color=GONE, label="removed"), Patch(color=STAYS, label="kept")]
        axes.legend(handles=handles if removed else handles[1:], loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return name


def rounds_line(folder: Path, name: str, accuracies: list[float], removed: list[int], kept: list[bool], dense: float) -> str:
    """Validation accuracy against the number of activations removed."""
    good = [(n, a) for n, a, k in zip(removed, accuracies, kept, strict=True) if k]
    bad = [(n, a) for n, a, k in zip(removed, accuracies, kept, strict=True) if not k]
    with figure(folder, name) as axes:
        axes.plot([0, *[n for n, _ in good]], [100 * dense, *[100 * a for _, a in good]], "o-", color=AFTER, label="kept round")
        if bad:
            axes.plot([n for n, _ in bad], [100 * a for _, a in bad], "x", color=GONE, label="undone round", markersize=8)
        axes.axhline(100 * dense, color=BEFORE, linestyle="--", linewidth=1, label="dense network")
        axes.set_title("Accuracy while layers go")
        axes.set_xlabel("activations removed")
        axes.set_ylabel("validation accuracy (%)")
        axes.legend()
    return name


def merge_bars(folder: Path, name: str, certificates: list[Certificate]) -> str:
    """Multiply-accumulates of each merged group, before and after."""
    rows = range(len(certificates))
    with figure(folder, name, size=(7, 1.4 + 0.55 * len(certificates))) as axes:
        axes.barh([r - 0.19 for r in rows], [c.macs_before / 1e3 for c in certificates], 0.36, color=BEFORE, label="before")
        axes.barh([r + 0.19 for r in rows], [c.macs_after / 1e3 for c in certificates], 0.36, color=AFTER, label="merged")
        axes.set_yticks(
            list(rows), [f"{c.layers[0]} … {c.layers[-1]}\n{len(c.layers)} layers → 1, {c.mode}" for c in certificates], fontsize=8
        )
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_title("What was merged")
        axes.set_xlabel("thousand multiply-accumulates per image")
        axes.legend()
    return name


def latency_bars(folder: Path, name: str, comparisons: dict[str, Comparison]) -> str:
    """Median latency before and after per runtime, with 95 % intervals."""
    with figure(folder, name, columns=len(comparisons), size=(3.2 * len(comparisons), 3.8)) as grid:
        for axes, (runtime, c) in zip(grid if len(comparisons) > 1 else [grid], comparisons.items(), strict=True):
            timings = [c.before, c.after]
            errors = [[t.median - t.low for t in timings], [t.high - t.median for t in timings]]
            bars = axes.bar(["before", "after"], [t.median for t in timings], 0.6, yerr=errors, capsize=4, color=[BEFORE, AFTER])
            axes.bar_label(bars, fmt="%.3g", padding=4)
            axes.margins(y=0.15)
            axes.set_title(f"{runtime}: {1 / c.ratio:.2f}× as fast" if c.ratio < 1 else f"{runtime}: {c.ratio:.2f}× as long", fontsize=10)
        (grid[0] if len(comparisons) > 1 else grid).set_ylabel("milliseconds per image (batch 1)")
    return name
