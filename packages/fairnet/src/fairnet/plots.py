"""Pictures and report sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.report import COLOURS, Section, Table, figure
from numpy.typing import NDArray

from fairnet.audit import Audit
from fairnet.data.parts import BiasedSet
from fairnet.words import interval, percent

if TYPE_CHECKING:
    from fairnet.debias import Debiased
    from fairnet.methods.voronoi import Discovery

MANY_CELLS = 24
"""More (label, group) cells than this are shown as a map and their worst ones, not one by one."""


def alignment_plot(folder: Path, moments: list[dict[str, Any]], chosen: int) -> str:
    """Over phase 1: depth of misclassified samples, what conflicting ones are taken for, how many are misclassified."""
    with figure(folder, "alignment", columns=3, size=(12, 4)) as (left, middle, right):
        steps = [moment["step"] for moment in moments]
        left.plot(steps, [moment["depth"] for moment in moments], marker=".")
        left.set(xlabel="training step", ylabel="mean relative depth in the wrong cell", title="depth")
        middle.plot(steps, [100 * moment["follow"] for moment in moments], marker=".", label="what the shortcut says")
        middle.plot(steps, [100 * moment["right"] for moment in moments], marker=".", label="what they are")
        if any("zeta" in moment for moment in moments):
            zeta = [(moment["step"], 100 * moment["zeta"]) for moment in moments if "zeta" in moment]
            middle.plot(*zip(*zeta, strict=True), linestyle=":", label="all errors that follow the true group")
        middle.set(xlabel="training step", ylabel="share, %", title="conflicting images are taken for", ylim=(-3, 103))
        middle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
        right.plot(steps, [moment["misclassified"] for moment in moments], marker=".")
        right.set(xlabel="training step", ylabel="misclassified training images", title="who contradicts", ylim=(0, None))
        for axis in (left, middle, right):
            axis.axvline(chosen, linestyle="--", linewidth=1, color="#6b7280")
    return "alignment"


def image_grid(folder: Path, name: str, images: NDArray[np.uint8], titles: Sequence[str], columns: int = 10) -> str:
    """A grid of images with two lines of words above each."""
    rows = max(-(-len(images) // columns), 1)
    with figure(folder, name, rows=rows, columns=columns, size=(columns * 0.95, rows * 1.25)) as axes:
        for index, axis in enumerate(np.atleast_1d(axes).ravel()):
            axis.axis("off")
            if index < len(images):
                axis.imshow(images[index])
                axis.set_title(titles[index], fontsize=6, pad=2, loc="center", fontweight="normal")
    return name


def cell_maps(folder: Path, data: BiasedSet, before: NDArray[np.int64], after: NDArray[np.int64]) -> str:
    """Test accuracy of every (label, group) cell, before and after."""
    with figure(folder, "cells", columns=2, size=(9, 4.2)) as axes:
        for axis, predictions, title in zip(axes, (before, after), ("biased network", "after"), strict=True):
            table = np.full((len(data.classes), len(data.groups)), np.nan)
            for label, group in np.ndindex(table.shape):
                here = (data.test.y == label) & (data.test.b == group)
                if here.any():
                    table[label, group] = (predictions[here] == label).mean()
            picture = axis.imshow(100 * table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
            if len(data.groups) <= MANY_CELLS:
                axis.set_xticks(range(len(data.groups)), data.groups, rotation=60, fontsize=7)
            axis.set_yticks(range(len(data.classes)), data.classes, fontsize=7)
            axis.set(xlabel="group", ylabel="class", title=title)
            axis.grid(False)
            axis.figure.colorbar(picture, ax=axis, label="accuracy, %", shrink=0.8)
    return "cells"


def scatter(folder: Path, name: str, runs: dict[str, list[dict[str, Any]]], axes: tuple[str, str], words: tuple[str, str]) -> str:
    """Accuracy against fairness: one small dot a run, one large a method's mean."""
    markers = "osD^vPX*<>hp"
    with figure(folder, name, size=(7.5, 5)) as axis:
        for index, (method, found) in enumerate(runs.items()):
            points = np.array([[100 * run[key] for key in axes] for run in found])
            colour = COLOURS[index % len(COLOURS)]
            axis.scatter(*points.T, s=10, color=colour, alpha=0.45, linewidths=0)
            axis.scatter(*points.mean(0), s=60, color=colour, marker=markers[index % len(markers)], label=method, zorder=3)
        axis.set(xlabel=f"{words[0]}, %", ylabel=f"{words[1]}, %", title="accuracy and fairness on the test part")
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return name


def discover_figures(folder: Path, data: BiasedSet, found: Discovery) -> list[str]:
    """Alignment over time; the conflicting images; aligned ones for comparison."""
    names = [alignment_plot(folder, found.series(data), found.moments[found.chosen].step)]
    for name, rows in (("conflicting", np.flatnonzero(~found.found.aligned)), ("aligned", np.flatnonzero(found.found.aligned))):
        rows = np.random.default_rng(0).permutation(rows)[:20]
        titles = [f"{data.classes[int(data.train.y[row])]}\nseen {data.classes[int(found.found.pseudo_label[row])]}" for row in rows]
        names.append(image_grid(folder, name, data.train.x[rows], titles))
    return names


def debias_figures(
    folder: Path, data: BiasedSet, details: dict[str, Any], before: NDArray[np.int64], after: NDArray[np.int64]
) -> dict[str, str]:
    """Cells before and after; test images that were mended and that were spoilt; how the method searched."""
    names = {"cells": cell_maps(folder, data, before, after)} if len(data.groups) > 1 else {}
    was, is_now = before == data.test.y, after == data.test.y
    for name, rows in (("mended", np.flatnonzero(~was & is_now)), ("spoilt", np.flatnonzero(was & ~is_now))):
        rows = np.random.default_rng(0).permutation(rows)[:20]
        titles = [f"{data.classes[int(before[row])]}\n→ {data.classes[int(after[row])]}" for row in rows]
        if len(rows):
            names[name] = image_grid(folder, name, data.test.x[rows], titles)
    if "moments" in details:
        names["alignment"] = alignment_plot(folder, details["moments"], details["revealing_step"])
    if "history" in details:
        history = details["history"]
        with figure(folder, "mask", columns=2, size=(9, 3.2)) as (left, right):
            epochs = [row["epoch"] for row in history]
            left.plot(epochs, [100 * row["accuracy"] for row in history])
            left.set(xlabel="mask epoch", ylabel="accuracy, %", title="hard mask on held-out images")
            right.plot(epochs, [100 * row["kept"] for row in history])
            right.set(xlabel="mask epoch", ylabel="open gates, %", title="what is kept", ylim=(0, 102))
        names["mask"] = "mask"
    return names


def debias_sections(result: Debiased, audit: Audit, figures: dict[str, str]) -> list[Section]:
    """The report of one run."""
    rows = [
        [name, percent(getattr(result.before, key)), percent(getattr(result.after, key))]
        for name, key in (
            ("unbiased accuracy (mean over cells)", "unbiased"),
            ("aligned", "aligned"),
            ("conflicting", "conflicting"),
            ("worst class, conflicting", "worst_class"),
            ("bias read by a fresh probe", "probe"),
        )
        if getattr(result.before, key) is not None
    ]
    rows += [
        [name, percent(result.before.by_alignment[name]), percent(result.after.by_alignment[name])] for name in result.before.by_alignment
    ]
    cost = result.cost
    rows += [
        ["parameters", f"{cost['parameters_before']:,}", f"{cost['parameters_after']:,}"],
        ["parameters that are not zero", f"{cost['nonzero_parameters_before']:,}", f"{cost['nonzero_parameters_after']:,}"],
        ["MACs an image", f"{cost['macs_before']:,}", f"{cost['macs_after']:,}"],
        ["median latency, ms", f"{cost['latency_ms_before']:.2f}", f"{cost['latency_ms_after']:.2f}"],
    ]
    sections = [
        Section(
            "Before and after",
            "Measured on the untouched test part.",
            Table(["", "biased network", result.method], rows),
            [figures["cells"]] if "cells" in figures else [],
        ),
        Section("Groups after", "", audit_table(audit)),
        group_section(audit),
    ]
    for name, title in (
        ("mended", "Test images that were wrong and are right now"),
        ("spoilt", "Test images that were right and are wrong now"),
        ("alignment", "How the shortcut was found"),
        ("mask", "How the mask was learned"),
    ):
        if name in figures:
            sections.append(Section(title, figures=[figures[name]]))
    return sections


def group_section(audit: Audit) -> Section:
    """Accuracy by label and group; of many cells the worst."""
    cells = [cell for cell in audit.cells if cell.n]
    title = "Accuracy by label and group"
    if len(cells) > MANY_CELLS:
        title = f"The {MANY_CELLS} worst of {len(cells)} cells of label and group"
        cells = sorted(cells, key=lambda cell: cell.accuracy.value or 0.0)[:MANY_CELLS]
    rows = [[cell.label, cell.group, cell.n, interval(cell.accuracy)] for cell in cells]
    return Section(title, "", Table(["label", "group", "images", f"accuracy [{100 * audit.confidence:.0f} % interval]"], rows))


def audit_table(audit: Audit) -> Table:
    """The summary of an audit with intervals."""
    rows = [
        ["accuracy", interval(audit.accuracy)],
        ["unbiased accuracy", interval(audit.unbiased_accuracy)],
        ["aligned accuracy", interval(audit.aligned_accuracy)],
        ["conflicting accuracy", interval(audit.conflicting_accuracy)],
        [
            f"worst group: {audit.worst_group.label} in {audit.worst_group.group} (n = {audit.worst_group.n})",
            interval(audit.worst_group.accuracy),
        ],
        ["accuracy gap between cells", interval(audit.accuracy_gap)],
        ["demographic parity difference", interval(audit.demographic_parity_difference)],
        ["equalized odds difference", interval(audit.equalized_odds_difference)],
    ]
    return Table(["", f"value [{100 * audit.confidence:.0f} % interval]"], rows)


def discover_sections(metrics: dict[str, Any], figures: list[str]) -> list[Section]:
    """The report of a search."""
    text = (
        f"{metrics['conflicting']} of the training images ({100 * metrics['conflicting_share']:.1f} %) contradict what the network finds easy, "
        f"seen at step {metrics['revealing_step']}."
    )
    if not metrics["shortcut_found"]:
        text = (
            f"No shortcut was found: misclassified images lie near the boundary (depth {metrics['depth']:.2f}), as hard images do. " + text
        )
    counts = Table(["class", "conflicting images"], [[name, count] for name, count in metrics["conflicting_per_class"].items()])
    return [
        Section("What was found", text, counts, figures=[figures[0]]),
        Section("Images that contradict the shortcut", figures=[figures[1]]),
        Section("Images that follow it", figures=[figures[2]]),
    ]


def compare_sections(folder: Path, cells: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[Section]:
    """One table and one scatter per share."""
    sections = []
    for rho, methods in summary.items():
        rows = [
            [
                name,
                row["seeds"],
                difference(row.get("unbiased")),
                difference(row.get("conflicting") or row.get("worst_class")),
                difference(row.get("aligned")),
                percent(row["probe"]["mean"]) if "probe" in row else "–",
            ]
            for name, row in methods.items()
        ]
        runs: dict[str, list[dict[str, Any]]] = {}
        for cell in cells:
            if "result" in cell and f"{cell['parameters']['source']['rho']:g}" == rho:
                runs.setdefault(cell["parameters"]["method"], []).append(cell["result"])
        known = all(run["conflicting"] is not None and run["aligned"] is not None for found in runs.values() for run in found)
        keys = ("aligned", "conflicting") if known else ("accuracy", "worst_class")
        words = ("accuracy on aligned images", "on conflicting images") if known else ("accuracy", "accuracy of the worst class")
        name = scatter(folder, f"scatter-{rho}", runs, keys, words)
        columns = ["method", "seeds", "unbiased, %", "conflicting, %" if known else "worst class, %", "aligned, %", "bias read by a probe"]
        caption = "Mean over seeds; in parentheses the paired difference to vanilla in points with its 95 % t interval."
        sections.append(Section(f"rho {rho}", "", Table(columns, rows, caption), [name]))
    return sections


def difference(found: dict[str, Any] | None) -> str:
    """A mean with its paired difference, as text."""
    if found is None:
        return "–"
    text = f"{100 * found['mean']:.1f}"
    if found["difference"] is None:
        return text
    if found["low"] is None:
        return f"{text} ({100 * found['difference']:+.1f})"
    return f"{text} ({100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}])"
