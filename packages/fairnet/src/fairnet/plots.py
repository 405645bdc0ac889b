"""Pictures and report sections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.report import Section, Table, figure
from numpy.typing import NDArray

from fairnet.audit import Audit
from fairnet.data.parts import BiasedSet
from fairnet.words import interval, percent

if TYPE_CHECKING:
    from fairnet.debias import Debiased
    from fairnet.methods.voronoi import Discovery


def depth_plot(folder: Path, moments: list[dict[str, Any]], chosen: int) -> str:
    """Depth of misclassified samples and their number over phase 1."""
    with figure(folder, "alignment", columns=2, size=(9, 3.2)) as (left, right):
        steps = [moment["step"] for moment in moments]
        left.plot(steps, [moment["depth"] for moment in moments], marker=".")
        left.axvline(chosen, linestyle="--", linewidth=1)
        left.set(xlabel="training step", ylabel="mean relative depth in the wrong cell", title="revealing moment")
        right.plot(steps, [moment["misclassified"] for moment in moments], marker=".")
        right.set(xlabel="training step", ylabel="misclassified training images", title="who contradicts", ylim=(0, None))
    return "alignment"


def image_grid(folder: Path, name: str, images: NDArray[np.uint8], titles: list[str], columns: int = 10) -> str:
    """A grid of images with a word above each."""
    count = max(len(images), 1)
    rows = -(-count // columns)
    with figure(folder, name, rows=rows, columns=columns, size=(columns * 0.85, rows * 1.05)) as axes:
        for index, axis in enumerate(np.atleast_1d(axes).ravel()):
            axis.axis("off")
            if index < len(images):
                axis.imshow(images[index])
                axis.set_title(titles[index], fontsize=6, pad=2)
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
            picture = axis.imshow(100 * table, vmin=0, vmax=100, cmap="viridis")
            axis.set_xticks(range(len(data.groups)), data.groups, rotation=60, fontsize=7)
            axis.set_yticks(range(len(data.classes)), data.classes, fontsize=7)
            axis.set(xlabel="group", ylabel="class", title=title)
            axis.grid(False)
            axis.figure.colorbar(picture, ax=axis, label="accuracy, %", shrink=0.8)
    return "cells"


def discover_figures(folder: Path, data: BiasedSet, found: Discovery) -> list[str]:
    """Depth over time; the conflicting images; aligned ones for comparison."""
    moments = [{"step": moment.step, "depth": moment.depth, "misclassified": moment.misclassified} for moment in found.moments]
    names = [depth_plot(folder, moments, found.moments[found.chosen].step)]
    for name, rows in (("conflicting", np.flatnonzero(~found.found.aligned)), ("aligned", np.flatnonzero(found.found.aligned))):
        rows = np.random.default_rng(0).permutation(rows)[:20]
        titles = [f"{data.classes[int(data.train.y[row])]}, seen {data.classes[int(found.found.pseudo_label[row])]}" for row in rows]
        names.append(image_grid(folder, name, data.train.x[rows], titles))
    return names


def debias_figures(
    folder: Path, data: BiasedSet, details: dict[str, Any], before: NDArray[np.int64], after: NDArray[np.int64]
) -> dict[str, str]:
    """Cells before and after; depth over time where the method searched."""
    names = {"cells": cell_maps(folder, data, before, after)}
    if "moments" in details:
        names["alignment"] = depth_plot(folder, details["moments"], details["revealing_step"])
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
    ]
    cost = result.cost
    rows += [
        ["parameters", f"{cost['parameters_before']:,}", f"{cost['parameters_after']:,}"],
        ["MACs an image", f"{cost['macs_before']:,}", f"{cost['macs_after']:,}"],
        ["median latency, ms", f"{cost['latency_ms_before']:.2f}", f"{cost['latency_ms_after']:.2f}"],
    ]
    sections = [
        Section(
            "Before and after",
            "Measured on the untouched test part.",
            Table(["", "biased network", result.method], rows),
            [figures["cells"]],
        ),
        Section("Groups after", "", audit_table(audit)),
    ]
    if "alignment" in figures:
        sections.append(Section("How the shortcut was found", figures=[figures["alignment"]]))
    if "mask" in figures:
        sections.append(Section("How the mask was learned", figures=[figures["mask"]]))
    return sections


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
    return [
        Section("What was found", text, figures=[figures[0]]),
        Section("Images that contradict the shortcut", figures=[figures[1]]),
        Section("Images that follow it", figures=[figures[2]]),
    ]
