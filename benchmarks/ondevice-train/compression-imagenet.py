"""ImageNet MobileNetV2 fine-tuned on CIFAR-10: 10,000 images at 128x128, last 2 and 4 convolutions, the same recipe for all methods.

    python benchmarks/ondevice-train/compression-imagenet.py             # accuracy and bytes; cells that are not there yet
    python benchmarks/ondevice-train/compression-imagenet.py --seconds   # seconds of whole steps, into a record of their own

Everything before the last inverted residual block is frozen and in evaluation mode and there is no augmentation, so that its outputs
never change: they are computed once for the accuracy runs. Bytes and seconds are those of whole steps from the image on. The recipe
is the papers' (SGD 0.05 cosine to a tenth, no momentum, weight decay 1e-4, clipped to 2), with fewer epochs and images.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import sys
import time

import numpy as np
import torch
from _subjects import DATA, RESULTS, WEIGHTS, imagenet_mobilenet
from edge_shared.data.vision import load_images
from edge_shared.errors import InputError
from edge_shared.files import read_json, write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from ondevice_train.compression.bench import evaluation_norms, training_step
from ondevice_train.compression.planner import plan
from ondevice_train.compression.prepare import codecs, prepare
from torch import nn

FILE = RESULTS / "ondevice-train-compression-imagenet.json"
SECONDS = RESULTS / "ondevice-train-compression-imagenet-seconds.json"
METHODS = {
    "vanilla": ("plain", {}),
    "hosvd": ("hosvd", {"epsilon": 0.8, "pack": False}),
    "asi-paper": ("asi-paper", {"epsilon": 0.8, "pack": False}),
    "asi": ("asi", {"epsilon": 0.8}),
    "gradient-filter r2": ("gradient-filter", {"patch": 2, "pack": False}),
    "fixed-bases": ("fixed-bases", {"epsilon": 0.8}),
    "svd": ("svd", {"epsilon": 0.8, "pack": False}),
}
BATCH, TRAIN, TEST, SIZE = 64, 10_000, 2_000, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUT = 17  # features[:CUT] is the frozen prefix of both scopes: the last 4 convolutions begin in block 17


def images_of(x: np.ndarray) -> torch.Tensor:
    """ImageNet's normalisation, float32 NCHW."""
    values = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def mixed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In random order: the files are sorted by class."""
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


def tail(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """What follows the prefix."""
    return model.classifier(model.features[CUT:](features).mean((2, 3)))


@torch.no_grad()
def prefix(model: nn.Module, x: np.ndarray) -> torch.Tensor:
    """Outputs of the frozen prefix."""
    first = copy.deepcopy(model.features[:CUT]).eval()
    return torch.cat([first(images_of(x[at : at + 100])) for at in range(0, len(x), 100)])


def prepared_model(last: int, method: str, seed: int, example: torch.Tensor, labels: torch.Tensor) -> tuple[nn.Module, object]:
    """The whole model under a plan; its head is fresh."""
    torch.manual_seed(seed)
    model, _ = imagenet_mobilenet(classes=10)
    model.classifier[0].p = 0.0
    evaluation_norms(model)
    name, settings = METHODS[method]
    made = plan(model, example, method=name, last=last, labels=labels, **settings)
    return prepare(model, made), made


def fine_tune(last: int, method: str, seed: int, epochs: int, data: dict) -> dict:
    """One run: accuracy of the last epoch and the best, bytes of a whole forward pass before and after."""
    example, labels = images_of(data["x"][:BATCH]), data["train_y"][:BATCH]
    model, made = prepared_model(last, method, seed, example, labels)
    before = measure.training_bytes(model, example).bytes
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=1e-4)
    total = epochs * (len(data["train_y"]) // BATCH)
    generator = torch.Generator().manual_seed(seed)
    accuracies, step = [], 0
    for _ in range(epochs):
        order = torch.randperm(len(data["train_y"]), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = 0.005 + 0.045 * 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(tail(model, data["train"][chosen]), data["train_y"][chosen]).backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 2.0)
            optimizer.step()
            step += 1
        with torch.no_grad():
            right = [
                (tail(model, data["test"][at : at + 500]).argmax(1) == data["test_y"][at : at + 500]).sum() for at in range(0, TEST, 500)
            ]
        accuracies.append(float(sum(right)) / TEST)
    after = measure.training_bytes(model, example).bytes
    return {
        "last": last, "method": method, "seed": seed, "epochs": epochs, "test_accuracy": accuracies[-1], "by_epoch": accuracies,
        "measured_bytes": max(before, after), "predicted_bytes": made.predicted_bytes, "measured_bytes_first_step": before,
        "vanilla_bytes": made.vanilla_bytes, "layer_bytes": made.layer_bytes,
        "ranks": {choice.name: choice.ranks for choice in made.layers},
        "refreshes": {name: codec.refreshes for name, codec in codecs(model) if hasattr(codec, "refreshes")},
    }  # fmt: skip


def seconds(cells: list[tuple[int, str]], steps: int) -> list[dict]:
    """CPU seconds of a whole step from the image on, methods in turns, medians; an epoch is 10,000 / batch of them."""
    found = load_images(str(DATA / "cifar10_jpeg_train.npz"), size=SIZE, limit=4 * BATCH)
    images, labels = mixed(found.train_x, found.train_y)
    x, y = images_of(images[:BATCH]), torch.from_numpy(labels[:BATCH])
    rows = []
    for last in sorted({last for last, _ in cells}):
        made = {method: prepared_model(last, method, 0, x, y)[0] for at, method in cells if at == last}
        solver = prepared_model(last, "hosvd", 0, x, y)[0]
        for _, codec in codecs(solver):
            codec.solver = "svd"
        made["hosvd (SVD, as published)"] = solver
        times: dict[str, list[float]] = {method: [] for method in made}
        optimizers = {m: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3) for m, model in made.items()}
        for step in range(steps + 1):
            for method, model in made.items():
                start = time.process_time()
                training_step(model, x, y, optimizers[method])
                if step:
                    times[method].append(time.process_time() - start)
        base = statistics.median(times["vanilla"])
        for method, values in times.items():
            median = statistics.median(values)
            rows.append({"last": last, "method": method, "batch": BATCH, "steps": steps, "clock": "CPU time of one thread", "step_seconds": median,
                         "seconds_per_epoch": median * (TRAIN / BATCH), "ratio": median / base})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--train", type=int, default=TRAIN)
    parser.add_argument("--minutes", type=float, default=20, help="no new run after so many minutes; call again to go on")
    arguments = parser.parse_args()
    if not WEIGHTS.exists():
        raise InputError(f"{WEIGHTS}: the ImageNet weights are not there; set EDGEWISE_DATA")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    record = read_json(FILE) if FILE.exists() else {"runs": []}

    common = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "batch": BATCH,
        "size": SIZE,
        "weights": "torchvision IMAGENET1K_V1",
    }
    if arguments.seconds:
        rows: dict[str, dict] = {"last2": {}, "last4": {}}
        for row in seconds([(last, method) for last in (2, 4) for method in METHODS], arguments.steps):
            rows[f"last{row['last']}"][row["method"]] = row
        write_json(SECONDS, {
            "command": "python benchmarks/ondevice-train/compression-imagenet.py --seconds",
            "what": "whole steps from the image on, methods in turns, medians of CPU time; an epoch is 10,000 images", "rows": rows, **common,
        })  # fmt: skip
        return
    start = time.perf_counter()
    found = load_images(str(DATA / "cifar10_jpeg_train.npz"), size=SIZE, limit=arguments.train)
    tested = load_images(str(DATA / "cifar10_jpeg_train.npz"), size=SIZE, limit=TEST)
    x, y = mixed(found.train_x, found.train_y)
    tested_x, tested_y = tested.test_x, tested.test_y
    model, _ = imagenet_mobilenet(classes=10)
    data = {
        "x": x[:BATCH], "train": prefix(model, x), "train_y": torch.from_numpy(y),
        "test": prefix(model, tested_x), "test_y": torch.from_numpy(tested_y),
    }  # fmt: skip
    print(f"prefix of {len(y)} + {len(tested_y)} images: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    done = {(run["last"], run["method"], run["seed"]) for run in record["runs"]}
    for seed in range(arguments.seeds):
        for last in (2, 4):
            for method in arguments.methods:
                if (last, method, seed) in done:
                    continue
                if time.perf_counter() - start > 60 * arguments.minutes:
                    print("time is up; call again to go on", file=sys.stderr)
                    return
                began = time.perf_counter()
                run = fine_tune(last, method, seed, arguments.epochs, data)
                record["runs"].append(run)
                record = {
                    "command": "python benchmarks/ondevice-train/compression-imagenet.py",
                    "what": "the frozen prefix runs once (its outputs never change); bytes are of whole forward passes",
                    "train_images": arguments.train, "test_images": TEST, **common, "summary": summary(record["runs"]), "runs": record["runs"],
                }  # fmt: skip
                write_json(FILE, record)
                print(f"last {last} {method:20s} seed {seed}: {run['test_accuracy']:.4f}, {run['measured_bytes']} bytes"
                      f" ({time.perf_counter() - began:.0f} s)", flush=True)  # fmt: skip


def summary(runs: list[dict]) -> dict:
    """Mean accuracy and bytes by scope and method, in the order of accuracy."""
    result: dict = {}
    for last in (2, 4):
        rows = {}
        for method in METHODS:
            own = [run for run in runs if run["last"] == last and run["method"] == method]
            if own:
                values = [run["test_accuracy"] for run in own]
                size = max(run["measured_bytes"] for run in own)
                rows[method] = {
                    "mean_accuracy": statistics.fmean(values), "stdev": statistics.stdev(values) if len(values) > 1 else None,
                    "seeds": len(values), "measured_bytes": size, "layer_bytes": max(run["layer_bytes"] for run in own),
                    "times_less": own[0]["vanilla_bytes"] / size,
                }  # fmt: skip
        result[f"last{last}"] = dict(sorted(rows.items(), key=lambda item: -item[1]["mean_accuracy"]))
    return result


if __name__ == "__main__":
    main()
