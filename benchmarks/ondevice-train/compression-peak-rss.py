"""Peak resident memory of fine-tuning all of MobileNetV2, plain against compressed, each in a process of its own.

    python benchmarks/ondevice-train/compression-peak-rss.py

Three steps of SGD on random images at 128x128. `started` is a process that has imported, built the model and made the batch;
`inference` has run one forward pass without gradients. What a method adds to `inference` is its training memory. Rows with "pages given
back" run under MALLOC_MMAP_THRESHOLD_=1048576: glibc then returns every large block at once, and its own reserve is not counted.
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
from ondevice_train.compression.bench import evaluation_norms, train_alone
from ondevice_train.compression.planner import plan
from ondevice_train.compression.plans import Plan

FILE = RESULTS / "ondevice-train-compression-peak-rss.json"
PARTIAL = FILE.with_suffix(".partial.json")
METHODS = {
    "plain": ("plain", {}),
    "asi": ("asi", {"epsilon": 0.8}),
    "fixed-bases": ("fixed-bases", {"basis": "cosine", "ratio": 0.2}),
    "checkpointing": ("checkpointing", {}),
}


RETURNS = ", pages given back"


def child(kind: str, model: str, batch: int, size: int) -> None:
    """What runs alone."""
    network, _ = models.build(model, classes=10, size=size)
    if kind == "started":
        torch.randn(batch, 3, size, size)
    elif kind == "inference":
        with torch.no_grad():
            network.eval()(torch.randn(batch, 3, size, size))
    else:
        train_alone(network, Plan.from_json(json.loads(Path(kind).read_text())), batch, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    common = (arguments.model, arguments.batch, arguments.size)
    if arguments.child:
        child(arguments.child, *common)
        return
    network, _ = models.build(arguments.model, classes=10, size=arguments.size)
    evaluation_norms(network)
    x, y = torch.randn(arguments.batch, 3, arguments.size, arguments.size), torch.arange(arguments.batch) % 10
    record = read_json(PARTIAL) if PARTIAL.exists() else {"rows": {}}
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--model",
        arguments.model,
        "--batch",
        str(arguments.batch),
        "--size",
        str(arguments.size),
    ]
    for label in ("started", "inference", *METHODS, *(f"{method}{RETURNS}" for method in ("plain", "asi"))):
        if label in record["rows"]:
            continue
        row: dict = {}
        method, _, returns = label.partition(RETURNS[:2])
        settled = ["env", "MALLOC_MMAP_THRESHOLD_=1048576"] if returns else []
        with tempfile.TemporaryDirectory() as folder:
            kind = label
            if method in METHODS:
                name, settings = METHODS[method]
                made = plan(network, x, method=name, labels=y, **settings)
                kind = str(Path(folder) / "plan.json")
                write_json(kind, made.to_json())
                row = {"predicted_saved_bytes": made.predicted_bytes, "vanilla_saved_bytes": made.vanilla_bytes}
            row["peak_rss_bytes"] = measure.peak_rss([*settled, *command, "--child", kind])
        rows = {**record["rows"], label: row}
        base = rows.get("inference", {}).get("peak_rss_bytes", 0)
        if method in METHODS:
            row["above_inference_bytes"] = row["peak_rss_bytes"] - base
        record = {
            "command": "python benchmarks/ondevice-train/compression-peak-rss.py", "what": " ".join(__doc__.split("\n\n")[2].split()),
            "model": arguments.model, "batch": arguments.batch, "size": arguments.size, "seed": 0, "rows": rows, "environment": environment(),
        }  # fmt: skip
        write_json(PARTIAL, record)
        print(label, row, flush=True)
    PARTIAL.replace(FILE)


if __name__ == "__main__":
    main()
