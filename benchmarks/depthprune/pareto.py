"""Accuracy against latency on real small images: depth removal by every method, and width pruning by torch-pruning at equal epochs.

Run: python benchmarks/depthprune/pareto.py [digits|PATH] [SEEDS]
Each seed trains one dense network; every method and every width starts from it, with the same epochs of distillation in all:
depth in two rounds, width in one. Test accuracy; latency is the median ratio to the dense network in ONNX Runtime, runs in turn.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _record import write
from depthprune.capture import capture
from depthprune.finetune import Distill
from depthprune.fold import prepare
from depthprune.measure import compare_onnx, size
from depthprune.merging import merge
from depthprune.methods import make
from depthprune.models import build
from depthprune.pruner import DepthPruner, accuracy_of
from edge_shared.artifacts import export_onnx
from edge_shared.data.vision import load_images
from edge_shared.training import TrainConfig, fit
from torch import nn

METHODS = ("easier", "affine", "tlc", "layer-folding", "egp", "nepenthe")
EPOCHS, TUNE = 16, 10


def shorten(dense: nn.Module, images: Any, method: str, layers: int, seed: int) -> nn.Module:
    """Remove `layers` activations in two rounds of TUNE/2 epochs, whatever it costs, and merge."""
    train = images.loader("train", 64, shuffle=True, seed=seed)
    example = next(iter(images.loader("val", 2)))[0]
    pruned = method in ("egp", "nepenthe")
    loop = DepthPruner(
        dense, example, make(method, tolerance=1.0), calibration=list(images.loader("train", 256))[:4], held_out=list(images.loader("val", 512)),
        evaluate=accuracy_of(images.loader("val", 512)), per_round=(layers + 1) // 2, target=None if pruned else layers, max_rounds=5 if pruned else 2,
        finetune=Distill(dense, train, TrainConfig(epochs=TUNE // 2, batch_size=64, lr=0.02, seed=seed)),
    )  # fmt: skip
    if method == "layer-folding":
        loop.method.threshold = 0.0  # the same number of layers as the others
    outcome = loop.run()
    return merge(outcome.model.eval(), example, policy="latency", front_padded=outcome.front_padded).model


def narrow(dense: nn.Module, images: Any, ratio: float, seed: int) -> nn.Module:
    """Prune channels by magnitude with torch-pruning, then TUNE epochs of the same distillation."""
    import torch_pruning as tp

    model = copy.deepcopy(dense).eval()
    example = next(iter(images.loader("val", 2)))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.head],
            round_to=4,
        )
        pruner.step()
    train = images.loader("train", 64, shuffle=True, seed=seed)
    graph = capture(model, example)
    Distill(dense, train, TrainConfig(epochs=TUNE, batch_size=64, lr=0.02, seed=seed))(graph, 1, {}, None)
    return prepare(graph.eval(), example)


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else "digits"
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    rows: list[dict[str, Any]] = []
    name = Path(data).stem
    for seed in range(seeds):
        images = load_images(data, seed=0, limit=None if data == "digits" else 4000)
        example = next(iter(images.loader("val", 2)))[0]
        test = accuracy_of(images.loader("test", 512))
        dense = build("residual", images.shape, len(images.classes), seed).to(memory_format=torch.channels_last)
        fit(
            dense,
            images.loader("train", 64, shuffle=True, seed=seed),
            None,
            TrainConfig(epochs=EPOCHS, batch_size=64, lr=0.05, warmup_epochs=1, seed=seed),
        )
        dense.eval()
        plain = prepare(capture(copy.deepcopy(dense), example), example)
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "dense.onnx"
            export_onnx(plain, example, base)
            rows.append(
                {"seed": seed, "kind": "dense", "accuracy": test(plain), "latency_ratio": 1.0, "size": asdict(size(plain, example))}
            )
            jobs = [(method, layers) for method in METHODS for layers in ((4, 8) if method in ("easier", "affine", "tlc") else (8,))]
            jobs += [("torch-pruning", ratio) for ratio in (0.25, 0.5, 0.65)]
            for method, amount in jobs:
                model = (
                    narrow(dense, images, amount, seed) if method == "torch-pruning" else shorten(dense, images, method, int(amount), seed)
                )
                model = model.to(memory_format=torch.contiguous_format)
                file = Path(folder) / "model.onnx"
                export_onnx(model, example, file)
                timing = compare_onnx(base, file, example, 300)
                row = {
                    "seed": seed, "kind": "width" if method == "torch-pruning" else "depth", "method": method, "amount": amount, "accuracy": test(model),
                    "latency_ratio": timing.ratio, "latency": asdict(timing), "size": asdict(size(model, example)),
                }  # fmt: skip
                rows.append(row)
                print(seed, method, amount, round(row["accuracy"], 4), round(timing.ratio, 3), flush=True)
                command = f"python benchmarks/depthprune/pareto.py {name} {seeds}"
                write(
                    f"pareto-{name}",
                    command,
                    rows,
                    data=name,
                    fingerprint=images.fingerprint,
                    seeds=list(range(seed + 1)),
                    epochs=EPOCHS,
                    tuning_epochs=TUNE,
                )


if __name__ == "__main__":
    main()
