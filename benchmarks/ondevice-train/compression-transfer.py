"""Transfer with the whole network compressed: accuracy against plain PyTorch at ten times less measured training memory, 5 seeds.

    python benchmarks/ondevice-train/compression-transfer.py

MNIST: pretrained on the digits 0-4, fine-tuned on 5-9. CIFAR-10: pretrained on airplane to deer, fine-tuned on dog to truck. The
network (a small mobile one) is pretrained by this script once for each set; a seed draws the images to learn from, the new head and
the order. All layers train. Training memory is what the whole model keeps for backward at the training batch, by measurement; the
figure with gradients and parameters' state beside it. Written after every run.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time

import numpy as np
import torch
from _subjects import DATA, RESULTS
from edge_shared.architectures import mobile
from edge_shared.data.loader import image_loader
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.files import read_json, write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from edge_shared.training import TrainConfig, evaluate
from edge_shared.training import fit as train
from ondevice_train.compare import half_width
from ondevice_train.compression.bench import evaluation_norms
from ondevice_train.compression.planner import plan
from ondevice_train.compression.prepare import prepare
from torch import nn

FILE = RESULTS / "ondevice-train-compression-transfer.json"
BATCH = 32
BLOCKS = ((3, 16, 1), (3, 24, 2), (3, 24, 1), (3, 32, 2), (3, 32, 1), (3, 48, 1))
TASKS = {"mnist": ("mnist.npz", 28, 1500), "cifar10": ("cifar10_jpeg_train.npz", 32, 2000)}
"""File, side in pixels, images to fine-tune on."""
METHODS = {
    "plain": ("plain", {}),
    "fixed-bases cosine 0.3": ("fixed-bases", {"basis": "cosine", "ratio": 0.3}),
    "asi, a tenth": ("asi", {"tenth": True}),
    "head only": ("head", {}),
}


def network(size: int) -> nn.Module:
    """The small mobile network, 5 classes."""
    blocks = [{"kernel": 3, "expand": e, "out": o, "stride": s} for e, o, s in BLOCKS]
    return mobile.module(
        mobile.MobileConfig.parse(
            {"resolution": size, "stem": {"out": 16, "kernel": 3, "stride": 1}, "classes": 5, "name": "small-mobile", "blocks": blocks}
        )
    )


def part(images: ImageSet, split: str, classes: range, limit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` images of some classes, in random order, labels from 0, three channels."""
    x, y = images.arrays(split)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isin(y, list(classes))))[:limit]
    x = x[rows]
    return (x if x.shape[3] == 3 else x.repeat(3, axis=3)), y[rows] - classes[0]


def loader(images: ImageSet, arrays: tuple[np.ndarray, np.ndarray], batch: int, shuffle: bool, seed: int = 0):
    """Batches normalised as the whole set."""
    mean, std = ((values * 3)[:3] for values in (images.mean, images.std))
    return image_loader(*arrays, mean, std, batch_size=batch, shuffle=shuffle, seed=seed)


def run(base: nn.Module, images: ImageSet, test, task: str, method: str, seed: int, epochs: int) -> dict:
    """One fine-tuning run."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    head = max((name for name, module in model.named_modules() if isinstance(module, nn.Linear)), key=len)
    model.set_submodule(head, nn.Linear(model.get_submodule(head).in_features, 5))
    arrays = part(images, "train", range(5, 10), TASKS[task][2], seed)
    data = loader(images, arrays, BATCH, True, seed)
    x, y = next(iter(loader(images, arrays, BATCH, False)))
    evaluation_norms(model)
    vanilla = measure.training_bytes(model, x).bytes
    name, settings = METHODS[method]
    if name == "head":
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(head))
        predicted = None
    else:
        budget = vanilla // 10 if settings.get("tenth") else None
        made = plan(model, x, budget, name, labels=y, **{k: v for k, v in settings.items() if k != "tenth"})
        prepare(model, made)
        predicted = made.predicted_bytes
    before = measure.training_bytes(model, x).bytes
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    config = TrainConfig(epochs=epochs, batch_size=BATCH, lr=0.05, momentum=0.0, weight_decay=0.0, seed=seed)
    train(model, data, None, config, optimizer=optimizer, device="cpu", set_mode=evaluation_norms, description=method)
    after = measure.training_bytes(evaluation_norms(model), x).bytes
    return {
        "task": task, "method": method, "seed": seed, "test_accuracy": evaluate(model, test)["accuracy"], "measured_bytes": max(before, after),
        "predicted_bytes": predicted, "vanilla_bytes": vanilla, "times_less": vanilla / max(before, after, 1),
        "gradient_bytes": 4 * sum(p.numel() for p in parameters),
    }  # fmt: skip


def summary(runs: list[dict]) -> dict:
    """Mean accuracy, and the paired difference to plain with its 95 % interval."""
    result: dict = {}
    for task in TASKS:
        rows = {}
        for method in METHODS:
            own = {r["seed"]: r for r in runs if r["task"] == task and r["method"] == method}
            base = {r["seed"]: r for r in runs if r["task"] == task and r["method"] == "plain"}
            both = sorted(set(own) & set(base))
            if both:
                differences = [100 * (own[seed]["test_accuracy"] - base[seed]["test_accuracy"]) for seed in both]
                rows[method.replace(".", "_")] = {
                    "mean_accuracy": statistics.fmean(own[seed]["test_accuracy"] for seed in both), "seeds": len(both),
                    "points_to_plain": statistics.fmean(differences), "ci95_points": half_width(differences),
                    "measured_bytes": max(own[seed]["measured_bytes"] for seed in both),
                    "times_less": min(own[seed]["times_less"] for seed in both),
                }  # fmt: skip
        result[task] = rows
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=5000, help="images to pretrain on")
    parser.add_argument("--pretrain-epochs", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    record = read_json(FILE) if FILE.exists() else {"runs": []}
    runs = record["runs"]
    for task in arguments.tasks:
        file, size, _ = TASKS[task]
        done = {(r["method"], r["seed"]) for r in runs if r["task"] == task}
        cells = [(seed, method) for seed in range(arguments.seeds) for method in METHODS if (method, seed) not in done]
        if not cells:
            continue
        images = load_images(str(DATA / file), size=size, limit=2 * max(arguments.pretrain, 8000))
        torch.manual_seed(0)
        base = network(size)
        source = part(images, "train", range(5), arguments.pretrain, 0)
        config = TrainConfig(epochs=arguments.pretrain_epochs, batch_size=64, lr=0.1, seed=0)
        train(base, loader(images, source, 64, True), None, config, device="cpu")
        source_accuracy = evaluate(base, loader(images, part(images, "test", range(5), 2000, 0), 500, False))["accuracy"]
        print(f"{task}: pretrained, {source_accuracy:.3f} on its own classes", flush=True)
        test = loader(images, part(images, "test", range(5, 10), 2000, 0), 500, False)
        for seed, method in cells:
            start = time.perf_counter()
            runs.append(run(base, images, test, task, method, seed, arguments.epochs))
            print(f"{task} {method:24s} seed {seed}: {runs[-1]['test_accuracy']:.4f}, {runs[-1]['times_less']:.1f} times less"
                  f" ({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
            record = {
                **record, "command": " ".join(["python benchmarks/ondevice-train/compression-transfer.py", *sys.argv[1:]]),
                "what": __doc__.strip().splitlines()[0], "batch": BATCH, "epochs": arguments.epochs, "blocks": BLOCKS,
                "fine_tune_images": {name: TASKS[name][2] for name in TASKS}, "test_images": 2000,
                "source_accuracy": {**record.get("source_accuracy", {}), task: source_accuracy},
                "environment": environment(), "summary": summary(runs), "runs": runs,
            }  # fmt: skip
            write_json(FILE, record)
    for task, rows in record["summary"].items():
        for method, row in rows.items():
            print(task, method, row)


if __name__ == "__main__":
    main()
