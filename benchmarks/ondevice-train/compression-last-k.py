"""The last 5 convolutions of MCUNet at the ranks that give ASI's 120 times: the papers' count, and the whole model's bytes beside it.

    python benchmarks/ondevice-train/compression-last-k.py

224x224, batch 128, as in the paper. The papers count the inputs of the chosen convolutions; a process also keeps what ReLU6, BatchNorm,
pooling and the classifier need. Measured on one forward pass of random images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from _subjects import RESULTS
from edge_shared import architectures
from edge_shared.files import write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from ondevice_train.compression._tucker import tucker_elements
from ondevice_train.compression.bench import evaluation_norms
from ondevice_train.compression.perplexity import layers_of
from ondevice_train.compression.planner import shape_choice, trained_modules
from ondevice_train.compression.plans import LayerChoice, Plan
from ondevice_train.compression.predict import predict
from ondevice_train.compression.prepare import prepare, restore
from torch import nn

BATCH, SIZE, LAST, PUBLISHED = 128, 224, 5, 120.09


def main() -> None:
    torch.manual_seed(0)
    model = evaluation_norms(architectures.module("mcunet-in1", classes=10, resolution=SIZE))
    found = layers_of(model, torch.zeros(1, 3, SIZE, SIZE))
    convs = [(name, module, (BATCH, *shape[1:])) for name, module, shape, _ in found if isinstance(module, nn.Conv2d)][-LAST:]
    dense = sum(4 * torch.Size(shape).numel() for _, _, shape in convs)

    def kept(rank: int) -> int:
        return sum(4 * tucker_elements(shape, (16, rank, 2, 2)) for _, _, shape in convs)

    rank = max(r for r in range(1, 97) if dense / kept(r) >= PUBLISHED)
    layers = tuple(
        LayerChoice(name, "conv", shape, shape_choice(module)[0], ranks=(16, rank, 2, 2)) for name, module, shape in convs
    )  # fmt: skip
    plan = Plan("asi", layers, trained=trained_modules(model, [name for name, _, _ in convs]), budget=1)
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    rows = {}
    for label, made in {
        "plain": replace(plan, method="plain", layers=(), pack=False),
        "inputs only": replace(plan, pack=False),
        "whole model": plan,
    }.items():
        prepare(model, made)
        rows[label] = {"measured_bytes": measure.training_bytes(model, x).bytes, "predicted_bytes": predict(model, x).bytes}
        restore(model)
    for row in rows.values():
        row["times_less"] = rows["plain"]["measured_bytes"] / row["measured_bytes"]
    write_json(RESULTS / "ondevice-train-compression-last-k.json", {
        "command": "python benchmarks/ondevice-train/compression-last-k.py", "what": " ".join(__doc__.split("\n\n")[2].split()),
        "model": "mcunet-in1", "batch": BATCH, "size": SIZE, "last": LAST, "ranks": [16, rank, 2, 2], "seed": 0,
        "papers_count": {"dense_mib": dense / 2**20, "kept_mib": kept(rank) / 2**20, "times_less": dense / kept(rank), "published": PUBLISHED},
        "rows": rows, "environment": environment(),
    })  # fmt: skip
    print(f"papers' count {dense / kept(rank):.2f} times; whole model", rows)


if __name__ == "__main__":
    main()
