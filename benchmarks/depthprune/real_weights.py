"""ImageNet MobileNetV2 on CIFAR-10 (10,000 images at 64 x 64), shortened under a short distillation, against torch-pruning.

Run, in this order (each may be interrupted and goes on where it stopped):
    python benchmarks/depthprune/real_weights.py train    # trains every cell, keeps the networks in a folder
    python benchmarks/depthprune/real_weights.py time     # merges and times them, writes results/depthprune-real-weights.json
    python benchmarks/depthprune/real_weights.py plot
Each seed (head, order of the data) fine-tunes one dense network from the ImageNet weights; every cell of the seed starts from it with
the same epochs of distillation from it: depth by the affine method in one round, among the activations whose merge pays (those beside one
depthwise convolution go together), width by group magnitude in one step, and a control from which nothing is taken. Latency: ONNX
Runtime, one thread, batch 1, runs in turn with the seed's dense network.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torchvision
from _record import DATA, RESULTS, write
from depthprune.capture import capture
from depthprune.finetune import Distill
from depthprune.fold import prepare
from depthprune.guard import only_if_faster
from depthprune.measure import compare_onnx, compare_torch, size
from depthprune.merging import merge
from depthprune.methods import make
from depthprune.models import load_weights
from depthprune.pruner import DepthPruner, accuracy_of, removable
from depthprune.worth import worth_merging
from edge_shared.artifacts import export_onnx, load_model, save_model
from edge_shared.artifacts import load_weights as read_weights
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.files import read_json, write_json
from edge_shared.training import TrainConfig, fit
from torch import nn

FOLDER = Path(tempfile.gettempdir()) / "depthprune-real-weights"
WEIGHTS = DATA / "weights" / "mobilenet_v2-b0353104.pth"
SIDE, IMAGES, EPOCHS, TUNING = 64, 10_000, 2, 2
SEEDS = (0, 1, 2)
CELLS: list[tuple[str, float]] = [("none", 0), ("depth", 12), ("depth", 24), ("torch-pruning", 0.1), ("torch-pruning", 0.2)]


def cells() -> Iterator[tuple[int, str, float, Path]]:
    """Seed, method, amount and folder of every network; each seed's dense one first."""
    for seed in SEEDS:
        for method, amount in [("dense", 0), *CELLS]:
            yield seed, method, amount, FOLDER / str(seed) / f"{method}-{amount}"


def data() -> ImageSet:
    """10,000 training, 1,000 validation and 2,000 test images."""
    whole = load_images(DATA / "cifar10_jpeg_train.npz", size=SIDE, limit=IMAGES, seed=0)
    return dataclasses.replace(
        whole, val_x=whole.val_x[:1000], val_y=whole.val_y[:1000], test_x=whole.test_x[:2000], test_y=whole.test_y[:2000]
    )


def start(seed: int) -> nn.Module:
    """MobileNetV2 with the ImageNet weights and a fresh head."""
    torch.manual_seed(seed)
    model = torchvision.models.mobilenet_v2(num_classes=10)
    load_weights(model, read_weights(WEIGHTS), WEIGHTS.name)
    return model.to(memory_format=torch.channels_last)


def shorten(dense: nn.Module, images: ImageSet, layers: int, tune: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Take `layers` activations out by the affine method, in one round, as `depthprune prune` does: only where layers will merge."""
    example = next(iter(images.loader("val", 2)))[0]
    graph = capture(copy.deepcopy(dense).eval(), example)
    worth = worth_merging(graph, example, removable(graph, "mergeable", None), "macs")
    loop = DepthPruner(
        dense, example, make("affine", tolerance=1.0), calibration=list(images.loader("train", 128))[:4], held_out=[],
        evaluate=accuracy_of(images.loader("val", 250)), per_round=layers, target=layers, max_rounds=1, finetune=tune,
        candidates=worth, front_pad=worth,
    )  # fmt: skip
    outcome = loop.run()
    return outcome.model, {"removed": [r.site for r in outcome.removals], "front_padded": sorted(outcome.front_padded)}


def narrow(dense: nn.Module, example: torch.Tensor, ratio: float) -> nn.Module:
    """Prune channels by group magnitude with torch-pruning, not tuned yet."""
    model = copy.deepcopy(dense).to(memory_format=torch.contiguous_format).eval()
    if ratio:
        import torch_pruning as tp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.MagnitudePruner(
                model,
                example,
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=[model.classifier[1]],
                round_to=8,
            ).step()
    return model.to(memory_format=torch.channels_last)


def train() -> None:
    """Train every cell that is not there yet."""
    images = data()
    example = next(iter(images.loader("val", 2)))[0]
    test = accuracy_of(images.loader("test", 250))
    dense, of_seed = nn.Module(), -1
    for seed, method, amount, folder in cells():
        if (folder / "cell.json").is_file():
            continue
        loader = images.loader("train", 64, shuffle=True, seed=seed)
        if of_seed != seed:
            dense, of_seed = start(seed), seed
            config = TrainConfig(epochs=EPOCHS, batch_size=64, lr=0.02, warmup_epochs=0.2, seed=seed)
            fit(dense, loader, None, config, checkpoint=FOLDER / str(seed) / "checkpoint" / "checkpoint.safetensors")
            dense.eval()
        config = TrainConfig(epochs=TUNING, batch_size=64, lr=0.02, warmup_epochs=0.1, seed=seed)
        tune, facts = Distill(dense, loader, config), dict[str, Any]()
        if method == "depth":
            model, facts = shorten(dense, images, int(amount), tune)
        elif method == "dense":
            model = capture(copy.deepcopy(dense), example)
        else:
            model = capture(narrow(dense, example, amount), example)
            tune(model, 1, {}, None)
        plain = prepare(model.to(memory_format=torch.contiguous_format).eval(), example)
        save_model(folder, plain, example, onnx=False)
        accuracy = test(plain)
        write_json(folder / "cell.json", {"seed": seed, "method": method, "amount": amount, "accuracy_before_merging": accuracy, **facts})
        print(seed, method, amount, accuracy, flush=True)


def clock() -> None:
    """Merge by the default policy, time against the dense network, write the record."""
    images = data()
    example = next(iter(images.loader("val", 2)))[0]
    test = accuracy_of(images.loader("test", 250))
    base, file, plain = FOLDER / "dense.onnx", FOLDER / "model.onnx", nn.Module()
    rows = list[dict[str, Any]]()
    for seed, method, amount, folder in cells():
        if not (folder / "cell.json").is_file():
            continue
        cell, model = read_json(folder / "cell.json"), load_model(folder).eval()
        if method == "dense":
            plain = model
            export_onnx(plain, example, base)
        if method == "depth":
            calibration = next(iter(images.loader("val", 64)))[0]
            result = merge(model, example, policy="latency", calibration=calibration, front_padded=cell["front_padded"])
            refused = only_if_faster(result, example)
            model = result.model
            cell |= {"merges": [asdict(c) for c in result.certificates], "kept_apart": len(result.kept), "guard": refused}
        error = export_onnx(model, example, file)
        timing = compare_onnx(base, file, example, 200)
        rows.append(
            {**cell, "accuracy": test(model), "onnx_max_abs_error": error, "latency_ratio": timing.ratio, "onnxruntime": asdict(timing),
             "torch": asdict(compare_torch(plain, model, example, 40)), "size": asdict(size(model, example))}
        )  # fmt: skip
        print(seed, method, amount, rows[-1]["accuracy"], timing.ratio, timing.low, timing.high, flush=True)
        write(
            "real-weights", "python benchmarks/depthprune/real_weights.py time", rows, data="CIFAR-10 (JPEG copies)",
            fingerprint=images.fingerprint, images={"train": IMAGES, "val": 1000, "test": 2000}, side=SIDE, weights=WEIGHTS.name,
            seeds=sorted({row["seed"] for row in rows}), epochs=EPOCHS, tuning_epochs=TUNING, threads=1, batch=1, summary=summary(rows),
        )  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per cell the means over seeds, and of depth its accuracy less that of width at the same latency, seed by seed.

    Width at a latency is read off the line through the seed's width cells and its control; None beyond the fastest of them.
    """
    found: dict[str, Any] = {}
    for method, amount in dict.fromkeys((row["method"], row["amount"]) for row in rows):
        same = [row for row in rows if (row["method"], row["amount"]) == (method, amount)]
        gaps = [gap for row in same if method == "depth" and (gap := _gap(row, rows)) is not None]
        name = f"{method}-{100 * amount:.0f}" if method == "torch-pruning" else f"{method}-{amount:.0f}"
        found[name] = {
            "method": method, "amount": amount, "seeds": len(same), "merges": mean([len(row.get("merges", [])) for row in same]),
            "accuracy": mean([row["accuracy"] for row in same]), "accuracy_least": min(row["accuracy"] for row in same),
            "accuracy_most": max(row["accuracy"] for row in same), "latency_ratio": mean([row["latency_ratio"] for row in same]),
            "torch_ratio": mean([row["torch"]["ratio"] for row in same]), "accuracy_less_width": mean(gaps) if gaps else None,
            "compared_seeds": len(gaps),
        }  # fmt: skip
    return found


def _gap(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    width = sorted(
        (r["latency_ratio"], r["accuracy"]) for r in rows if r["seed"] == row["seed"] and r["method"] in ("none", "torch-pruning")
    )
    if not width or row["latency_ratio"] < width[0][0]:
        return None
    return float(row["accuracy"] - np.interp(row["latency_ratio"], *zip(*width, strict=True)))


def plot() -> None:
    """Draw the record into docs/pictures: means over seeds."""
    from edge_shared.report import COLOURS, figure

    rows = read_json(RESULTS / "depthprune-real-weights.json")["summary"].values()
    folder = RESULTS.parents[1] / "docs" / "pictures"
    with figure(folder, "depthprune-real-weights", size=(7, 4)) as axes:
        for colour, kinds, label in (
            (COLOURS[7], ("none", "torch-pruning"), "width (torch-pruning)"),
            (COLOURS[2], ("depth",), "depth (affine)"),
        ):
            points = sorted((r["latency_ratio"], 100 * r["accuracy"], r["amount"]) for r in rows if r["method"] in kinds)
            axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=colour, label=label)
            for x, y, amount in points:
                axes.annotate(f"{amount:g}", (x, y), textcoords="offset points", xytext=(4, 5), fontsize=8)
        axes.set_xlabel("latency in ONNX Runtime (dense = 1)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title("MobileNetV2, ImageNet weights, CIFAR-10 at 64 x 64")
        axes.legend()
    (folder / "depthprune-real-weights.svg").unlink()


if __name__ == "__main__":
    {"train": train, "time": clock, "plot": plot}[sys.argv[1]]()
