"""ImageNet MobileNetV2 fine-tuned on CIFAR-10 under three byte budgets: all selectors, 10,000 images at 128x128, the same recipe.

    EDGEWISE_DATA=../shared/data python benchmarks/ondevice-train/selection-imagenet.py

The last 10 convolutions (blocks 15 to 18) may be selected; what lies before them never changes and runs once. Five periods of 960 of the
10,000 images, drawn by the seed and the same for all methods: an "epoch" of the methods is such a period, after which they choose anew. SGD without momentum, cosine from
0.05 to 0, gradients clipped to 2, no augmentation. Budgets are all training memory in bytes at batch 32, kept by measurement of the whole
model from the image on. Layers are ranked on Fashion-MNIST. Written after every run; call again to go on.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from _subjects import DATA, RESULTS, WEIGHTS, imagenet_mobilenet
from edge_shared.data.vision import load_images
from edge_shared.errors import InputError
from edge_shared.files import read_json, write_json
from edge_shared.memory import measure
from edge_shared.report import environment
from edge_shared.training import Epoch, Step
from ondevice_train.compare import half_width
from ondevice_train.fit import epoch_cost
from ondevice_train.methods import MethodOptions, method
from ondevice_train.selection.driver import Driver, accumulate_norms, weight_norms
from ondevice_train.selection.importance import Ranking
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.layers import OUTPUT, Selection
from ondevice_train.selection.selector import Setting
from ondevice_train.selection.table import selector_class
from torch import Tensor, nn

FILE = RESULTS / "ondevice-train-selection-imagenet.json"
BUDGETS = (768 * 1024, 2 * 2**20, 6 * 2**20)
UNDER_A_BUDGET = ("sparse-update", "full-random", "trady", "medyate", "det-rgn", "velocity", "last-k")
WITHOUT = ("head-only", "bias-only", "neq", "scotti", "lora", "plain")
BATCH, TRAIN, TEST, SIZE, PERIODS, PERIOD, LAYERS = 32, 10_000, 2_000, 128, 5, 960, 10
CUT = 15  # features[:CUT] never changes: the last 10 convolutions begin in block 15
RATE, CLIP = 0.05, 2.0
HEAD = "classifier.1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images_of(x: np.ndarray) -> Tensor:
    """ImageNet's normalisation, float32 NCHW; grey images become colour."""
    values = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 255
    return (values.expand(-1, 3, -1, -1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def fresh(seed: int) -> nn.Module:
    """ImageNet weights, a new classifier, no dropout."""
    torch.manual_seed(seed)
    model, _ = imagenet_mobilenet(classes=10)
    model.classifier[0].p = 0.0
    return model


def tail(model: nn.Module, features: Tensor) -> Tensor:
    """What follows the prefix."""
    return model.classifier(model.features[CUT:](features).mean((2, 3)))


@torch.no_grad()
def prefix(model: nn.Module, x: np.ndarray) -> Tensor:
    """Outputs of the part that never changes."""
    first = copy.deepcopy(model.features[:CUT]).eval()
    return torch.cat([first(images_of(x[at : at + 100])) for at in range(0, len(x), 100)])


PREPARED: dict[int, SelectiveModel] = {}


def prepare_selective(seed: int, example: Tensor, biases: int = 0) -> SelectiveModel:
    """The whole model at its starting point, of which the last `LAYERS` layers can be selected; traced once."""
    if biases not in PREPARED:
        PREPARED[biases] = SelectiveModel(fresh(seed), example, head=HEAD, biases=biases)
        PREPARED[biases].layers = PREPARED[biases].layers[-LAYERS:]
    prepared = PREPARED[biases]
    prepared.apply(Selection.nothing())
    prepared.model.load_state_dict(fresh(seed).state_dict())
    return prepared


def ranking() -> Ranking:
    """Layer scores from gradients on another task: 10 batches of Fashion-MNIST at the starting point."""
    found = load_images(str(DATA / "fashion-mnist"), size=SIZE, limit=10 * BATCH)
    order = np.random.default_rng(0).permutation(len(found.train_y))
    x, y = images_of(found.train_x[order]), torch.from_numpy(found.train_y[order])
    prepared = prepare_selective(0, x[:BATCH])
    batches = [(x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, len(y) // BATCH * BATCH, BATCH)]
    norms = accumulate_norms(prepared, batches)
    return Ranking.of(norms, prepared.layers, model="mobilenet_v2", data="fashion-mnist", steps=len(batches), seed=0)


def train(
    model: nn.Module, data: dict[str, Any], seed: int, optimizer: torch.optim.Optimizer, driver: Driver | None
) -> tuple[float, float]:
    """`PERIODS` of `PERIOD` images; test accuracy and the median of the step seconds."""
    steps = PERIOD // BATCH
    order = torch.randperm(len(data["train_y"]), generator=torch.Generator().manual_seed(seed))
    seconds, step = [], 0
    for period in range(PERIODS):
        model.train()
        for batch in order[period * PERIOD :][: steps * BATCH].view(steps, BATCH):
            began = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / (PERIODS * steps)))
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(tail(model, data["train"][batch]), data["train_y"][batch])
            loss.backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
            if driver is not None:
                seen = Step(period, step, float(loss.detach()), model, optimizer, None)
                driver.on_backward(seen)
            optimizer.step()
            if driver is not None:
                driver.on_step(seen)
            seconds.append(time.process_time() - began)
            step += 1
        if driver is not None and period < PERIODS - 1:
            driver.on_epoch(Epoch(period, {}, model, optimizer))
    model.eval()
    with torch.no_grad():
        right = sum(
            int((tail(model, data["test"][at : at + 250]).argmax(1) == data["test_y"][at : at + 250]).sum()) for at in range(0, TEST, 250)
        )
    return right / TEST, statistics.median(seconds)


def run_selector(name: str, budget: int | None, seed: int, data: dict[str, Any], scores: Ranking) -> dict[str, Any]:
    """One run of a method that chooses channels."""
    prepared = prepare_selective(seed, data["example"], LAYERS if name == "bias-only" else 0)
    cls = selector_class(name)
    costs = prepared.costs("bytes", cls.unit)
    rng = np.random.default_rng(seed)
    picked = [rng.choice(len(data["x"]), BATCH, replace=False) for _ in range(2)]
    probe = [(images_of(data["x"][at]), data["train_y"][torch.from_numpy(at)]) for at in picked] if name == "det-rgn" else []
    setting = Setting(costs, budget, seed, scores, lambda: weight_norms(prepared))
    rows: list[dict[str, Any]] = []

    def on_select(period: int, selection: Any, optimizer: Any) -> None:
        cost = epoch_cost(prepared, costs, costs, period, selection, 0)
        assert budget is None or cost.measured_total_bytes <= budget
        assert cost.predicted_total_bytes == cost.measured_total_bytes
        assert cost.predicted_saved_bytes == cost.measured_saved_bytes
        rows.append(asdict(cost))

    held_out = data["held_out"]
    driver = Driver(prepared, cls(setting), probe=lambda: probe, held_out=lambda: held_out, on_select=on_select)
    driver.start()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=RATE)
    accuracy, seconds = train(prepared.model, data, seed, optimizer, driver)
    return {
        "test_accuracy": accuracy, "step_cpu_seconds": seconds,
        "measured_total_bytes": max(row["measured_total_bytes"] for row in rows),
        "measured_saved_bytes": max(row["measured_saved_bytes"] for row in rows),
        "channels_by_period": [row["channels"] for row in rows], "layers_by_period": [row["layers"] for row in rows],
        "unit": "neurons" if cls.unit == OUTPUT else "channels", "selector_state_bytes": driver.state_bytes(),
        "selector_seconds": statistics.median(driver.overhead_seconds),
    }  # fmt: skip


def run_baseline(name: str, seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """LoRA, or all of the last 10 convolutions in torch's own way."""
    model = fresh(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as everywhere here: statistics and scales of the norms are frozen
            module.requires_grad_(False)
    held = [model.get_submodule(key) for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if name == "lora":
        # Adapters go on convolutions that are not depthwise: 7 of the last 10.
        method("lora").prepare(model, data["example"], MethodOptions(last=7, head=HEAD, seed=seed))
    else:
        model.requires_grad_(False)
        for part in [*(m for m in model.features[CUT:].modules() if isinstance(m, nn.Conv2d)), model.get_submodule(HEAD)]:
            part.requires_grad_(True)
    model.train()
    original = model.train

    def train_mode(mode: bool = True) -> nn.Module:
        original(mode)
        for norm in held:
            norm.eval()
        return model

    model.train = train_mode  # type: ignore[method-assign]
    model.train()
    saved = measure.training_bytes(model, data["example"]).bytes
    parameters = [p for p in model.parameters() if p.requires_grad]
    trained = 4 * sum(p.numel() for p in parameters)
    adapters = trained - 4 * sum(p.numel() for p in model.get_submodule(HEAD).parameters()) if name == "lora" else 0
    accuracy, seconds = train(model, data, seed, torch.optim.SGD(parameters, lr=RATE), None)
    return {"test_accuracy": accuracy, "step_cpu_seconds": seconds, "measured_saved_bytes": saved,
            "measured_total_bytes": saved + trained + adapters}  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By budget and method: mean accuracy with its 95 % interval; paired differences to sparse-update of the same budget and seed."""
    result: dict[str, Any] = {}
    for budget in (*BUDGETS, None):
        rows: dict[str, Any] = {}
        for name in UNDER_A_BUDGET if budget else WITHOUT:
            own = {run["seed"]: run for run in runs if run["budget_bytes"] == budget and run["method"] == name}
            if not own:
                continue
            values = [run["test_accuracy"] for run in own.values()]
            rows[name] = {
                "mean_accuracy": statistics.fmean(values), "ci95": half_width(values), "seeds": len(values),
                "measured_total_bytes": max(run["measured_total_bytes"] for run in own.values()),
                "step_cpu_seconds": statistics.median(run["step_cpu_seconds"] for run in own.values()),
            }  # fmt: skip
            static = {r["seed"]: r for r in runs if r["budget_bytes"] == budget and r["method"] == "sparse-update"}
            if budget and name != "sparse-update" and set(own) <= set(static):
                differences = [100 * (own[seed]["test_accuracy"] - static[seed]["test_accuracy"]) for seed in own]
                rows[name]["points_to_sparse_update"] = statistics.fmean(differences)
                rows[name]["points_ci95"] = half_width(differences)
        result["none" if budget is None else str(budget)] = dict(sorted(rows.items(), key=lambda item: -item[1]["mean_accuracy"]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[*UNDER_A_BUDGET, *WITHOUT])
    parser.add_argument("--minutes", type=float, default=40, help="no new run after so many minutes; call again to go on")
    arguments = parser.parse_args()
    if not WEIGHTS.exists():
        raise InputError(f"{WEIGHTS}: the ImageNet weights are not there; set EDGEWISE_DATA")
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = load_images(str(DATA / "cifar10_jpeg_train.npz"), size=SIZE, limit=TRAIN)
    tested = load_images(str(DATA / "cifar10_jpeg_train.npz"), size=SIZE, limit=TEST)
    order = np.random.default_rng(0).permutation(len(found.train_y))  # the files are sorted by class
    x, y = found.train_x[order], found.train_y[order]
    model = fresh(0)
    data: dict[str, Any] = {
        "x": x, "train": prefix(model, x), "train_y": torch.from_numpy(y), "example": images_of(x[:BATCH]),
        "test": prefix(model, tested.test_x), "test_y": torch.from_numpy(tested.test_y), "held_out": images_of(found.val_x[:16]),
    }  # fmt: skip
    scores = ranking()
    print(f"prefix and ranking: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    runs: list[dict[str, Any]] = read_json(FILE)["runs"] if FILE.exists() else []
    done = {(run["method"], run["budget_bytes"], run["seed"]) for run in runs}
    cells = [
        (name, budget, seed)
        for seed in range(arguments.seeds)
        for budget in (*BUDGETS, None)
        for name in (UNDER_A_BUDGET if budget else WITHOUT)
        if name in arguments.methods and (name, budget, seed) not in done
    ]
    for name, budget, seed in cells:
        if time.perf_counter() - began > 60 * arguments.minutes:
            print("time is up; call again to go on", file=sys.stderr)
            return
        start = time.perf_counter()
        known = name in ("lora", "plain")
        run = run_baseline(name, seed, data) if known else run_selector(name, budget, seed, data, scores)
        runs.append({"method": name, "budget_bytes": budget, "seed": seed, **run})
        write_json(FILE, {
            "command": "EDGEWISE_DATA=../shared/data python benchmarks/ondevice-train/selection-imagenet.py",
            "what": " ".join(__doc__.split("\n\n")[2].split()), "weights": "torchvision IMAGENET1K_V1", "batch": BATCH, "size": SIZE,
            "train_images": len(y), "test_images": TEST, "periods": PERIODS, "images_per_period": PERIOD, "selectable_layers": LAYERS, "threads": 1,
            "clock": "CPU time of one thread, steps from the end of the fixed part on", "budgets_bytes": BUDGETS,
            "ranking": asdict(scores), "summary": summary(runs), "runs": runs, "environment": environment(),
        })  # fmt: skip
        print(f"{name:14s} {budget} seed {seed}: {run['test_accuracy']:.4f}, {run['measured_total_bytes']} bytes,"
              f" {1000 * run['step_cpu_seconds']:.0f} ms a step ({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
