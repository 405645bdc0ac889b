"""Draw the time-memory front of whole-network training from the record of compression-steptime.py.

python benchmarks/ondevice-train/compression-front.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from _subjects import RESULTS
from edge_shared.files import read_json

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
NAMES = {"mobilenet_v2": "MobileNetV2, 128x128", "resnet18": "ResNet-18, 128x128", "vit-6x192": "ViT of 6 blocks, 192 wide, 65 tokens"}
record = read_json(RESULTS / "ondevice-train-compression-steptime.json")
for model, title in NAMES.items():
    cell = next((c for key, c in record["cells"].items() if key.startswith(f"whole,{model},") and c["batch"] == 32), None)
    if cell is None:
        continue
    figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
    rows = {name: (row["saved_bytes"] / 2**20, row["cpu_ratio"]) for name, row in cell["rows"].items() if row["cpu_ratio"] < 4}
    front = sorted(value for name, value in rows.items() if name.startswith("checkpointing") or name == "plain")
    axes.plot(*zip(*front, strict=True), color="tab:gray", lw=1, zorder=1, label="plain PyTorch and gradient checkpointing")
    for number, (name, (size, ratio)) in enumerate(rows.items()):
        baseline = name.startswith("checkpointing") or name == "plain"
        axes.scatter(size, ratio, s=28, color="tab:gray" if baseline else "tab:red" if name == "asi" else "tab:blue", zorder=2)
        axes.annotate(name, (size, ratio), xytext=(4, 4 if number % 2 else -9), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log",
        xlabel="kept for the backward pass, measured, MiB",
        ylabel="CPU time of a step / plain",
        title=f"{title}, batch 32, all layers",
    )
    axes.axhline(1, color="black", lw=0.5, ls=":")
    axes.legend(fontsize=7)
    axes.margins(x=0.15, y=0.15)
    figure.savefig(PICTURES / f"ondevice-train-front-{model}.png", dpi=110)
    plt.close(figure)
