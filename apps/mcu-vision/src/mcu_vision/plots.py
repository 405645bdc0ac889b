"""The picture of a build: which tensor lies where in the arena, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_shared.report import COLOURS, INK, figure


def arena_map(folder: Path, plan: dict[str, Any], calls: list[str], name: str = "arena") -> str:
    """Each tensor as a box: calls from left to right, addresses from bottom to top; the dashed line is what no plan can go below.

    Args:
        folder: where to.
        plan: of `mcu_vision.workflow.plain_plan`.
        calls: names of the kernel calls.
        name: of the files.
    """
    from matplotlib.patches import Rectangle

    top = plan["bytes"] / 1024
    with figure(folder, name, size=(max(7.0, 0.42 * len(calls)), 4.2)) as axes:
        for index, tensor in enumerate(plan["tensors"]):
            first, last = max(tensor["first_call"], 0), min(tensor["last_call"], len(calls) - 1)
            axes.add_patch(
                Rectangle(
                    (first - 0.5, tensor["offset"] / 1024), last - first + 1, tensor["bytes"] / 1024,
                    facecolor=COLOURS[index % (len(COLOURS) - 1)], alpha=0.8, edgecolor=INK, linewidth=0.7,
                )
            )  # fmt: skip
        bound = plan["lower_bound"] / 1024
        axes.axhline(bound, color=INK, linestyle="--", linewidth=1.2, label=f"least possible: {plan['lower_bound']:,} bytes")
        axes.set_xticks(range(len(calls)), calls, rotation=90, fontsize=6)
        axes.set_xlim(-0.5, len(calls) - 0.5)
        axes.set_ylim(0, 1.15 * top)
        axes.set_ylabel("address in the arena, KiB")
        axes.set_title(f"Static arena: {plan['bytes']:,} bytes planned")
        axes.legend(loc="upper right")
    return name
