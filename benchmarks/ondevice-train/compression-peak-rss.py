"""Peak resident memory of fine-tuning all of MobileNetV2, plain against compressed, each in a process of its own.

    python benchmarks/ondevice-train/compression-peak-rss.py

A process makes its plan and takes three steps of SGD on random images at 128x128. `started` is a process that has imported, built the
model and made the batch; `inference` has run one forward pass without gradients. What a method adds to `inference` is its training
memory. As in `fit`, every method but plain training gives freed blocks back to the system (`return_freed_blocks`); rows of the other
kind show what that does alone, and "steps only" leaves the making of the plan to another process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from _subjects import RESULTS
from edge_shared.files import read_json, write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from ondevice_train import models
from ondevice_train.compression.bench import evaluation_norms, sgd, training_step
from ondevice_train.compression.planner import plan
from ondevice_train.compression.plans import Plan
from ondevice_train.compression.prepare import prepare
from ondevice_train.ops.allocator import return_freed_blocks

FILE = RESULTS / "ondevice-train-compression-peak-rss.json"
PARTIAL = FILE.with_suffix(".partial.json")
METHODS = {
    "plain": ("plain", {}),
    "asi": ("asi", {"epsilon": 0.8}),
    "fixed-bases": ("fixed-bases", {"basis": "cosine", "ratio": 0.2}),
    "checkpointing": ("checkpointing", {}),
}
ROWS = {
    "plain": ("plain", False),
    "asi": ("asi", True),
    "checkpointing": ("checkpointing", True),
    "fixed-bases": ("fixed-bases", True),
    "asi, freed blocks kept": ("asi", False),
    "plain, freed blocks returned": ("plain", True),
    "asi, steps only": ("asi", True),
}
"""Label -> method, and whether freed blocks go back to the system."""


def child(kind: str, model: str, batch: int, size: int, report: Path) -> None:
    """What runs alone; writes its plan to `report`, or takes the steps of the plan that lies there."""
    if kind in ROWS and ROWS[kind][1]:
        return_freed_blocks()
    network, _ = models.build(model, classes=10, size=size)
    x, y = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    if kind == "inference":
        with torch.no_grad():
            network.eval()(x)
    if kind not in ROWS:
        return
    evaluation_norms(network)
    if report.exists():
        made = Plan.from_json(json.loads(report.read_text()))
    else:
        name, settings = METHODS[ROWS[kind][0]]
        made = plan(network, x, method=name, labels=y, **settings)
        write_json(report, made.to_json())
    prepare(network, made)
    optimizer = sgd(network)
    for _ in range(3):
        training_step(network, x, y, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.model, arguments.batch, arguments.size, arguments.report)
        return
    common = ["--model", arguments.model, "--batch", str(arguments.batch), "--size", str(arguments.size)]
    record = read_json(PARTIAL) if PARTIAL.exists() else {"rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        for label in ("started", "inference", *ROWS):
            if label in record["rows"]:
                continue
            report = Path(folder) / f"{label}.json"
            command = [sys.executable, "-W", "ignore", __file__, *common, "--report", str(report)]
            if label.endswith(", steps only"):
                measure.peak_rss([*command, "--child", label])  # makes the plan
            row = {"peak_rss_bytes": measure.peak_rss([*command, "--child", label])}
            if label in ROWS:
                made = Plan.from_json(read_json(report))
                row["above_inference_bytes"] = row["peak_rss_bytes"] - record["rows"]["inference"]["peak_rss_bytes"]
                row |= {"predicted_saved_bytes": made.predicted_bytes, "vanilla_saved_bytes": made.vanilla_bytes}
            record = {
                "command": "python benchmarks/ondevice-train/compression-peak-rss.py", "what": " ".join(__doc__.split("\n\n")[2].split()),
                "model": arguments.model, "batch": arguments.batch, "size": arguments.size, "seed": 0,
                "rows": {**record["rows"], label: row}, "environment": environment(),
            }  # fmt: skip
            write_json(PARTIAL, record)
            print(label, row, flush=True)
    PARTIAL.replace(FILE)


if __name__ == "__main__":
    main()
