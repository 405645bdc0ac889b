"""ImageNet MobileNetV2 on CIFAR-10 (10,000 images at 64 x 64), shortened under a short distillation, against torch-pruning.

Run, in this order (each may be interrupted and goes on where it stopped):
    python benchmarks/depthprune/real_weights.py train    # trains every cell, keeps the networks in a folder
    python benchmarks/depthprune/real_weights.py time     # merges and times them, writes results/depthprune-real-weights.json
    python benchmarks/depthprune/real_weights.py plot
One seed. The dense network is fine-tuned from the ImageNet weights; every cell starts from it with the same epochs of distillation from it:
depth by the affine method in one round (activations beside one depthwise convolution go together), width by group magnitude
in one step, and a control from which nothing is taken. Latency: ONNX Runtime, one thread, batch 1, runs in turn with the dense network.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from depthprune.pruner import DepthPruner, accuracy_of
from edge_shared.artifacts import export_onnx, load_model, save_model
from edge_shared.artifacts import load_weights as read_weights
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.files import read_json, write_json
from edge_shared.training import TrainConfig, fit
from torch import nn

FOLDER = Path(tempfile.gettempdir()) / "depthprune-real-weights"
WEIGHTS = DATA / "weights" / "mobilenet_v2-b0353104.pth"
SIDE, IMAGES, EPOCHS, TUNING = 64, 10_000, 2, 2
DENSE = TrainConfig(epochs=EPOCHS, batch_size=64, lr=0.02, warmup_epochs=0.2, seed=0)
TUNE = TrainConfig(epochs=TUNING, batch_size=64, lr=0.02, warmup_epochs=0.1, seed=0)
CELLS: list[tuple[str, float]] = [("none", 0), ("depth", 12), ("depth", 24), ("torch-pruning", 0.1), ("torch-pruning", 0.2)]


def data() -> ImageSet:
    """10,000 training, 1,000 validation and 2,000 test images."""
    whole = load_images(DATA / "cifar10_jpeg_train.npz", size=SIDE, limit=IMAGES, seed=0)
    return dataclasses.replace(
        whole, val_x=whole.val_x[:1000], val_y=whole.val_y[:1000], test_x=whole.test_x[:2000], test_y=whole.test_y[:2000]
    )


def start() -> nn.Module:
    """MobileNetV2 with the ImageNet weights and a fresh head."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=10)
    load_weights(model, read_weights(WEIGHTS), WEIGHTS.name)
    return model.to(memory_format=torch.channels_last)


def shorten(dense: nn.Module, images: ImageSet, layers: int, tune: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Take `layers` activations out by the affine method, in one round."""
    example = next(iter(images.loader("val", 2)))[0]
    loop = DepthPruner(
        dense, example, make("affine", tolerance=1.0), calibration=list(images.loader("train", 128))[:4], held_out=[],
        evaluate=accuracy_of(images.loader("val", 250)), per_round=layers, target=layers, max_rounds=1, finetune=tune,
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
    loader = images.loader("train", 64, shuffle=True, seed=0)
    test = accuracy_of(images.loader("test", 250))
    dense = start()
    fit(dense, loader, None, DENSE, checkpoint=FOLDER / "checkpoint" / "checkpoint.safetensors")
    dense.eval()
    for method, amount in [("dense", 0), *CELLS]:
        folder = FOLDER / f"{method}-{amount}"
        if (folder / "cell.json").is_file():
            continue
        tune, facts = Distill(dense, loader, TUNE), dict[str, Any]()
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
        write_json(folder / "cell.json", {"method": method, "amount": amount, "accuracy_before_merging": accuracy, **facts})
        print(method, amount, accuracy, flush=True)


def clock() -> None:
    """Merge by the default policy, time against the dense network, write the record."""
    images = data()
    example = next(iter(images.loader("val", 2)))[0]
    test = accuracy_of(images.loader("test", 250))
    base, file, rows = FOLDER / "dense.onnx", FOLDER / "model.onnx", []
    plain = load_model(FOLDER / "dense-0").eval()
    export_onnx(plain, example, base)
    for method, amount in [("dense", 0), *CELLS]:
        folder = FOLDER / f"{method}-{amount}"
        if not (folder / "cell.json").is_file():
            continue
        cell, model = read_json(folder / "cell.json"), load_model(folder).eval()
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
        print(method, amount, rows[-1]["accuracy"], timing.ratio, timing.low, timing.high, flush=True)
        write(
            "real-weights", "python benchmarks/depthprune/real_weights.py time", rows, data="CIFAR-10 (JPEG copies)",
            fingerprint=images.fingerprint, images={"train": IMAGES, "val": 1000, "test": 2000}, side=SIDE, weights=WEIGHTS.name,
            seeds=[0], epochs=EPOCHS, tuning_epochs=TUNING, threads=1, batch=1,
        )  # fmt: skip


def plot() -> None:
    """Draw the record into docs/pictures."""
    from edge_shared.report import COLOURS, figure

    rows = read_json(RESULTS / "depthprune-real-weights.json")["rows"]
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
