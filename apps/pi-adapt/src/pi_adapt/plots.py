"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.report import COLOURS, figure

if TYPE_CHECKING:
    from pi_adapt.material import Material
    from pi_adapt.pipeline import Adapted

MODELS = {"pick": "network", "shorten": "shortened", "audit": "audited", "personalise": "personalised"}


def images(folder: Path, work: Material) -> str:
    """One image of up to ten classes: in training, in the test part, in the new domain."""
    classes = list(range(min(10, len(work.images.classes))))
    strips = (
        ("training", work.images.train_x, work.images.train_y),
        ("test", work.images.test_x, work.images.test_y),
        ("new domain", work.personal.train_x, work.personal.train_y),
    )
    with figure(folder, "images", rows=3, columns=len(classes), size=(7, 2.4)) as axes:
        for line, (name, x, y) in zip(axes, strips, strict=True):
            for number, (ax, label) in enumerate(zip(line, classes, strict=True)):
                found = np.flatnonzero(y == label)
                ax.axis("off")
                if len(found):
                    ax.imshow(x[found[0]].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                if number == 0:
                    ax.set_title(name, fontsize=9, pad=3)
    return "images"


def accuracy_bars(folder: Path, adapted: Adapted) -> str:
    """Accuracy before and after each stage."""
    names = list(MODELS)
    with figure(folder, "accuracy") as ax:
        place = np.arange(len(names) + 1)
        before = [100 * adapted.stages[name]["accuracy_before"] for name in (*names, "export")]
        after = [100 * adapted.stages[name]["accuracy_after"] for name in (*names, "export")]
        ax.bar(place - 0.19, before, 0.36, color=COLOURS[7], label="before")
        ax.bar(place + 0.19, after, 0.36, color=COLOURS[0], label="after")
        for x, value in [*zip(place - 0.19, before, strict=True), *zip(place + 0.19, after, strict=True)]:
            ax.text(x, value + 1, f"{value:.0f}", ha="center", fontsize=8)
        ax.set_xticks(place, [*(MODELS[name] for name in names[:-1]), "personalised\n(new domain)", "int8\n(new domain)"])
        ax.set_ylabel("test accuracy (%)")
        ax.set_ylim(0, 110)
        ax.legend(ncols=2, loc="upper left")
        ax.set_title("Accuracy before and after each stage")
    return "accuracy"


def cost_bars(folder: Path, adapted: Adapted) -> str:
    """MACs, peak bytes and latency of the network after each stage, side by side."""
    names = list(MODELS)
    latency = adapted.stages["export"]["latency_ms"]
    figures = (
        ("thousand MACs", [adapted.stages[name]["cost"]["macs"] / 1000 for name in names]),
        ("peak inference (kB)", [adapted.stages[name]["cost"]["peak_bytes"] / 1000 for name in names]),
        ("latency here (us)", [1000 * latency[name]["median"] for name in names]),
    )
    with figure(folder, "cost", columns=3, size=(7.4, 3.2)) as axes:
        for ax, colour, (title, values) in zip(axes, COLOURS, figures, strict=False):
            ax.bar(range(len(names)), values, 0.6, color=colour)
            ax.set_xticks(range(len(names)), [MODELS[name] for name in names], rotation=30, ha="right")
            ax.set_title(title)
    return "cost"


def audit_bars(folder: Path, audit: dict[str, Any]) -> str:
    """Accuracy of every group before and after, with bootstrap intervals."""
    with figure(folder, "audit") as ax:
        for offset, key, colour, label in ((-0.19, "audit_before", COLOURS[7], "before"), (0.19, "audit_after", COLOURS[2], "after")):
            groups = audit[key]["groups"]
            values = np.array([100 * group["accuracy"]["value"] for group in groups])
            ends = np.array([[100 * group["accuracy"][end] for group in groups] for end in ("low", "high")])
            spread = np.abs(ends - values)
            ax.bar(np.arange(len(groups)) + offset, values, 0.36, yerr=spread, color=colour, label=label, ecolor=COLOURS[5], capsize=2)
        ax.set_xticks(range(len(groups)), [group["group"] for group in groups], rotation=30, ha="right")
        ax.set_ylabel("test accuracy (%)")
        ax.set_ylim(0, 115)
        ax.legend(ncols=2, loc="upper left")
        ax.set_title("Accuracy by group, 95 % intervals")
    return "audit"
