"""Whole training steps, steady state, and the bytes kept, by method: last-4 layers and whole networks.

    python benchmarks/ondevice-train/compression-steptime.py last4 --batch 8
    python benchmarks/ondevice-train/compression-steptime.py whole --batch 32

Weights are torchvision's ImageNet MobileNetV2 where EDGEWISE_DATA (or ../shared/data) has them; inputs are CIFAR-10 images or,
without them, the bundled digits, scaled up. Batch of `--batch`, two threads, BatchNorms in evaluation mode in the baseline.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from edge_shared.files import write_json
from edge_shared.report import environment
from ondevice_train import models
from ondevice_train.compression.bench import bench, evaluation_norms

RESULTS = Path(__file__).parents[1] / "results"
DATA = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))
LAST4 = {
    "asi": ("asi", {"epsilon": 0.8}),
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
    "wasi": ("wasi", {"epsilon": 0.8, "weight_epsilon": 0.8}),
    "checkpointing": ("checkpointing", {}),
    "checkpointing, every 2nd": ("checkpointing-2", {}),
}


def batch_of(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    from edge_shared.data.vision import load_images

    path = DATA / "vision" / "cifar10_jpeg_train.npz"
    images = load_images(str(path) if path.exists() else "digits", size=size, limit=4 * count)
    x, y = next(iter(images.loader("train", count)))
    return x.expand(-1, 3, -1, -1).contiguous(), y, images.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scope", choices=["last4", "whole"])
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--only", default="", help="labels to run, by semicolons")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    weights = DATA / "vision" / "weights" / "mobilenet_v2-b0353104.pth"
    real = arguments.model == "mobilenet_v2" and weights.exists()
    x, y, name = batch_of(arguments.batch, arguments.size)
    if real:
        import torchvision

        model = torchvision.models.mobilenet_v2()
        model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        model, _ = models.build(arguments.model, classes=10, size=arguments.size)
    chosen = LAST4 if arguments.scope == "last4" else WHOLE
    chosen = {label: value for label, value in chosen.items() if not arguments.only or label in arguments.only.split(";")}
    rows = bench(
        evaluation_norms(model), x, y, chosen, last=4 if arguments.scope == "last4" else None, steps=arguments.steps,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    stem = f"ondevice-train-compression-{arguments.scope}-{arguments.model}-b{arguments.batch}"
    record = {
        "command": f"python benchmarks/ondevice-train/compression-steptime.py {' '.join(sys.argv[1:])}",
        "environment": environment(),
        "threads": 2,
        "seed": 0,
        "model": arguments.model,
        "weights": "torchvision IMAGENET1K_V1" if real else "random",
        "data": name,
        "batch": arguments.batch,
        "size": arguments.size,
        "steps": arguments.steps,
        "rows": [asdict(row) for row in rows],
    }
    write_json(RESULTS / f"{stem}.json", record)
    for row in rows:
        ratio = row.vanilla_bytes / max(1, row.saved_bytes)
        print(
            f"{row.method:28s} {row.milliseconds:9.1f} ms {row.ratio:6.2f}x  {row.saved_bytes / 2**20:8.2f} MiB kept, {ratio:6.1f}x less",
            end="",
        )
        paper = row.paper_vanilla_bytes / row.paper_bytes if row.paper_bytes else float("nan")
        print(f"; papers' count {paper:7.1f}x; predicted {'=' if row.saved_bytes == row.predicted_bytes else '!='}")


if __name__ == "__main__":
    main()
