"""Whole training steps, steady state, and the bytes kept, by method: last-4 layers and whole networks; the time-memory front.

    python benchmarks/ondevice-train/compression-steptime.py                  # all cells that are not in the results yet
    python benchmarks/ondevice-train/compression-steptime.py --cells last4,mobilenet_v2,128,8
    OMP_NUM_THREADS=2 python ...                                              # two threads instead of one; these cells have names of their own

Weights are torchvision's ImageNet MobileNetV2 where EDGEWISE_DATA (or ../shared/data) has them, else random; inputs are CIFAR-10
images, scaled up. BatchNorms are in evaluation mode in the baseline. Methods take turns step by step. Written after every cell.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from _subjects import RESULTS, cifar, subject
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from ondevice_train.compression._geometry import geometry_of
from ondevice_train.compression.bench import bench, evaluation_norms
from ondevice_train.compression.perplexity import layers_of
from ondevice_train.compression.planner import _chosen

FILE = RESULTS / "ondevice-train-compression-steptime.json"
LAST4 = {
    "asi": ("asi", {"epsilon": 0.8}),
    "asi, plain between": ("asi", {"epsilon": 0.8, "pack": False}),
    "asi, bf16 cores": ("asi", {"epsilon": 0.8, "half_core": True}),
    "asi-paper": ("asi-paper", {"epsilon": 0.8, "pack": False}),
    "hosvd (SVD, as published)": ("hosvd-svd", {"epsilon": 0.8, "pack": False}),
    "hosvd (Gram)": ("hosvd", {"epsilon": 0.8, "pack": False}),
    "fixed-bases": ("fixed-bases", {"epsilon": 0.8}),
    "gradient-filter r2": ("gradient-filter", {"patch": 2, "pack": False}),
    "quantise 8": ("quantise", {}),
    "checkpointing": ("checkpointing", {}),
}
WHOLE = {
    "packed activations only": ("packed", {}),
    "fixed-bases cosine 0.5": ("fixed-bases", {"basis": "cosine", "ratio": 0.5}),
    "fixed-bases cosine 0.3": ("fixed-bases", {"basis": "cosine", "ratio": 0.3}),
    "fixed-bases cosine 0.2": ("fixed-bases", {"basis": "cosine", "ratio": 0.2}),
    "quantise 8": ("quantise", {"bits": 8}),
    "quantise 4": ("quantise", {"bits": 4, "smooth_bits": 4}),
    "asi": ("asi", {"epsilon": 0.8}),
    "checkpointing": ("checkpointing", {}),
    "checkpointing, every 2nd": ("checkpointing-2", {}),
    "checkpointing, every 4th": ("checkpointing-4", {}),
}
WASI = {
    "wasi 0.8": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.8}),
    "wasi 0.5": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.5}),
    "wasi 0.2": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.2}),
    "wasi 0.8, plain between": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.8, "pack": False}),
    "wasi 0.2, plain between": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.2, "pack": False}),
    "asi": ("asi", {"epsilon": 0.8}),
}
HOSVD = {label: LAST4[label] for label in ("asi", "hosvd (SVD, as published)", "hosvd (Gram)")}
CELLS = {
    "last4,mobilenet_v2,128,8": (LAST4, 4, 21),
    "whole,mobilenet_v2,128,32": (WHOLE, None, 5),
    "last4,mobilenet_v2,128,32": (LAST4, 4, 5),
    "last4,vit-6x192,64,8": (LAST4, 4, 21),
    "last4,vit-6x192,64,32": (LAST4, 4, 5),
    "whole,vit-6x192,64,32": (WHOLE, None, 5),
    "wasi,vit-6x192,64,8": (WASI, None, 7),
    "wasi,vit-6x192,64,32": (WASI, None, 5),
    "wasi,vit-6x192,64,128": (WASI, None, 3),
    "whole,resnet18,128,32": (WHOLE, None, 3),
    "last4,mobilenet_v2,224,32": (HOSVD, 4, 3),
    "whole,mobilenet_v2,128,8": (WHOLE, None, 5),
    "hosvd,mobilenet_v2,128,8": (HOSVD, None, 3),
    "hosvd,mobilenet_v2,128,32": (HOSVD, None, 2),
    "hosvd,vit-6x192,64,8": (HOSVD, None, 3),
    "hosvd,vit-6x192,64,32": (HOSVD, None, 2),
}
"""Scope, model, side of the input, batch -> methods, last layers, counted steps."""


def exact_gradient_milliseconds(model: torch.nn.Module, x: torch.Tensor, last: int | None) -> float:
    """The dW of the chosen layers alone, plain: median of 5, CPU time."""
    found = layers_of(model, x)
    names = set(_chosen([name for name, *_ in found], found, last, None, None))
    parts = [(geometry_of(module), torch.randn(shape), torch.randn(out)) for name, module, shape, out in found if name in names]
    times = []
    for _ in range(6):
        start = time.process_time()
        for geometry, inputs, grad in parts:
            geometry.weight_gradient(inputs, grad)
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:])


def run(cell: str) -> dict:
    _, name, size, batch = cell.split(",")
    methods, last, steps = CELLS[cell]
    torch.manual_seed(0)
    images = cifar(int(size), 4 * int(batch))
    x, y = next(iter(images.loader("train", int(batch))))
    model, weights = subject(name, int(size))
    evaluation_norms(model)
    start = time.perf_counter()
    rows = bench(model, x.expand(-1, 3, -1, -1).contiguous(), y, methods, last=last, steps=steps,
                 say=lambda text: print(f"{cell}: {text}", file=sys.stderr, flush=True))  # fmt: skip
    return {
        "model": name, "size": int(size), "batch": int(batch), "last": last, "weights": weights, "data": Path(images.name).name, "steps": steps,
        "load_average": os.getloadavg()[0], "exact_weight_gradient_milliseconds": exact_gradient_milliseconds(model, x, last),
        "rows": {row.method.replace(".", "_"): asdict(row) for row in rows}, "cell_seconds": time.perf_counter() - start,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--again", action="store_true", help="also cells that the results hold already")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    record = read_json(FILE) if FILE.exists() else {"cells": {}}
    threads = torch.get_num_threads()
    for cell in arguments.cells:
        key = cell if threads == 1 else f"{cell},{threads} threads"
        if key in record["cells"] and not arguments.again:
            continue
        found = run(cell)
        record = {
            "command": "python benchmarks/ondevice-train/compression-steptime.py",
            "what": "whole step: zero_grad, forward, loss, backward, SGD; medians; methods take turns; the machine was shared, so that CPU"
            " time is the figure to compare",
            "environment": environment(), "seed": 0, "cells": {**record["cells"], key: found | {"threads": threads}},
        }  # fmt: skip
        write_json(FILE, record)
        print(key, f"({found['cell_seconds']:.0f} s; exact dW {found['exact_weight_gradient_milliseconds']:.1f} ms)", flush=True)
        for row in found["rows"].values():
            less = row["vanilla_bytes"] / max(1, row["saved_bytes"])
            mark = "=" if row["saved_bytes"] == row["predicted_bytes"] else "!="
            print(f"  {row['method']:28s} {row['milliseconds']:9.1f} ms {row['ratio']:6.2f}x, CPU {row['cpu_milliseconds']:9.1f} ms {row['cpu_ratio']:6.2f}x; kept {row['saved_bytes'] / 2**20:8.2f} MiB,"
                  f" {less:6.1f}x less, predicted {mark}; keeping {row['keeping_milliseconds']:8.1f} ms,"
                  f" dW {row['gradient_milliseconds']:8.1f} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
