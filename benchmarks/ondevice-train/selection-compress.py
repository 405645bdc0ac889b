"""Selection and compression under one budget: the same bytes, with selected channels kept exactly, in 8 bits, or on low-rank bases.

    EDGEWISE_DATA=../shared/data python benchmarks/ondevice-train/selection-compress.py

Fashion-MNIST to MNIST at 16x16 with a small mobile network pretrained here; TraDy under two byte budgets, 320 images, 3 epochs of batch 16,
3 seeds. Budgets are all training memory, kept by measurement; every prediction is asserted. Written after every run; call again to go on.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from _subjects import DATA, RESULTS
from edge_shared.architectures import mobile
from edge_shared.artifacts import save_model
from edge_shared.data.vision import load_images
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from edge_shared.training import TrainConfig, evaluate
from edge_shared.training import fit as train
from ondevice_train.compare import half_width
from ondevice_train.fit import FitConfig, _coloured, rank, run

FILE = RESULTS / "ondevice-train-selection-compress.json"
FORMS = {"exact": None, "8 bits": "quantise", "asi": "asi", "fixed bases": "fixed-bases", "auto": "auto"}
BUDGETS, SEEDS, IMAGES, SIZE = (100_000, 300_000), 3, 320, 16
BLOCKS = ((3, 16, 1), (3, 24, 2), (3, 24, 1), (3, 32, 2), (3, 32, 1), (3, 48, 1))
NETWORK = {
    "resolution": SIZE, "stem": {"out": 16, "kernel": 3, "stride": 1}, "classes": 10, "name": "small-mobile",
    "blocks": [{"kernel": 3, "expand": e, "out": o, "stride": s} for e, o, s in BLOCKS],
}  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By budget and form: accuracy, channels, and paired points to channels kept exactly."""
    result: dict[str, Any] = {}
    for budget in BUDGETS:
        rows: dict[str, Any] = {}
        exact = {r["seed"]: r["test_accuracy"] for r in runs if (r["budget_bytes"], r["form"]) == (budget, "exact")}
        for form in FORMS:
            own = {r["seed"]: r for r in runs if (r["budget_bytes"], r["form"]) == (budget, form)}
            if own and set(own) <= set(exact):
                values = [r["test_accuracy"] for r in own.values()]
                points = [100 * (r["test_accuracy"] - exact[seed]) for seed, r in own.items()]
                rows[form] = {
                    "mean_accuracy": statistics.fmean(values), "seeds": len(values), "channels": statistics.fmean(r["channels"] for r in own.values()),
                    "points_to_exact": statistics.fmean(points), "points_ci95": half_width(points),
                    "measured_total_bytes": max(r["measured_total_bytes"] for r in own.values()),
                    "step_seconds": statistics.median(r["step_seconds"] for r in own.values()),
                }  # fmt: skip
        result[str(budget)] = rows
    return result


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    images = {
        name: _coloured(load_images(DATA / file, size=SIZE, limit=limit, seed=0))
        for name, file, limit in (("source", "fashion-mnist", 2000), ("target", "mnist.npz", 1000))
    }
    network = mobile.module(mobile.MobileConfig.parse(NETWORK))
    source, target = images["source"], images["target"]
    train(network, source.loader("train", 64, shuffle=True), None, TrainConfig(epochs=4, batch_size=64, lr=0.1), device="cpu")
    accuracy = evaluate(network, source.loader("test", 500))["accuracy"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pretrained"
        save_model(path, network.eval(), next(iter(source.loader("train", 2)))[0], classes=source.classes, onnx=False)
        target = dataclasses.replace(target, train_x=target.train_x[:IMAGES], train_y=target.train_y[:IMAGES])
        base = FitConfig(model=str(path), data="mnist", method="trady", batch_size=16, lr=0.05, epochs=3, rank_steps=20)
        scores = rank(base, data=source)  # offline, on the source task
        ranking = {**dataclasses.asdict(scores), "layers": [dataclasses.asdict(row) for row in scores.layers]}
        runs: list[dict[str, Any]] = read_json(FILE)["runs"] if FILE.exists() else []
        done = {(r["budget_bytes"], r["form"], r["seed"]) for r in runs}
        for seed in range(SEEDS):
            for budget in BUDGETS:
                for form, compress in FORMS.items():
                    if (budget, form, seed) in done:
                        continue
                    config = dataclasses.replace(base, budget=str(budget), compress=compress, seed=seed, ranking=ranking)
                    found = run(config, data=target, verbose=False)
                    for row in found.selections:
                        assert row.predicted_saved_bytes == row.measured_saved_bytes
                        assert row.predicted_total_bytes == row.measured_total_bytes <= budget
                    forms = [keep["form"] for keep in found.cost["keeps"].values()]
                    runs.append({
                        "budget_bytes": budget, "form": form, "seed": seed, "test_accuracy": found.metrics["test_accuracy"],
                        "channels": statistics.fmean(row.channels for row in found.selections),
                        "measured_total_bytes": found.cost["measured_total_bytes"], "step_seconds": found.cost["step_seconds"],
                        "layers_low_rank": forms.count("low-rank"), "layers_8_bits": forms.count("int8"),
                    })  # fmt: skip
                    print(runs[-1], flush=True)
            write_json(FILE, {
                "command": "EDGEWISE_DATA=../shared/data python benchmarks/ondevice-train/selection-compress.py",
                "what": " ".join(__doc__.split("\n\n")[2].split()), "source_accuracy": accuracy, "max_error": base.max_error, "batch": 16,
                "train_images": IMAGES, "test_images": len(target.test_y), "seeds": SEEDS, "summary": summary(runs), "runs": runs,
                "environment": environment(),
            })  # fmt: skip


if __name__ == "__main__":
    main()
