"""The picture and page of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edge_shared.report import Result, Section, Table, figure, write_html

from mcu_attention.workflow import Ran


def timeline(folder: str | Path, ran: Ran) -> None:
    """Draw ``timeline.png`` and ``.svg``: what the device said over time, with and without its calibration, above what was true."""
    seconds = np.arange(len(ran.truth)) * ran.chain.hop / ran.chain.sfreq
    scores = ran.accuracy()
    rows = [
        (f"calibrated on the device\n({scores['calibrated']:.2f})", ran.calibrated.decisions),
        (f"as shipped\n({scores['shipped']:.2f})", ran.shipped.decisions),
        ("true state", ran.truth),
    ]
    colours = ("#2563eb", "#e07a1f", "#12946a", "#c23b6d", "#7a5bd0")
    with figure(folder, "timeline", size=(9, 2.9)) as axes:
        for row, (_, states) in enumerate(rows):
            for state, name in enumerate(ran.classes):
                at = seconds[states == state]
                axes.broken_barh(
                    [(time, ran.chain.hop / ran.chain.sfreq) for time in at], (-row - 0.35, 0.7), color=colours[state % len(colours)],
                    label=name if row == 2 else None, linewidth=0,
                )  # fmt: skip
        axes.set_yticks([0, -1, -2], [name for name, _ in rows])
        axes.set_xlabel("seconds of decisions after the calibration, stretch after stretch (balanced accuracy in brackets)")
        axes.grid(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=len(ran.classes), frameon=False)
        axes.set_title("SYNTHETIC EEG" if ran.synthetic else "", loc="left", fontsize=8)


def page(folder: str | Path, ran: Ran, result: Result) -> Path:
    """Write ``report.html`` with the timeline and the numbers of `result`."""
    scores, cost = ran.accuracy(), result.cost
    rows = [["calibrated on the device", scores["calibrated"]], ["as shipped", scores["shipped"]], ["chance", scores["chance"]]]
    sections = [
        Section(
            "States", "What the firmware printed for the stretches whose state it was not told.",
            Table(["last layer", "balanced accuracy"], rows), figures=["timeline"],
        ),
        Section(
            "Cost",
            "Flash and RAM by `arm-none-eabi-size` of the linked program, input and output by semihosting included; RAM without stack. "
            "Instructions are QEMU's count on the emulated Cortex-M4, not cycles.",
            Table(["what", "value"], [[name.replace("_", " "), value] for name, value in cost.items() if value is not None]),
        ),
    ]  # fmt: skip
    return write_html(folder, "mcu-attention", sections, result)
