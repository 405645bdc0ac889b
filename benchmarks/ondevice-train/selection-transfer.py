"""Transfer from Fashion-MNIST to MNIST with a small mobile network pretrained here: 9 budgets x 5 seeds, static against dynamic.

Every run keeps its budget by measurement. Prints paired differences to the static scheme (same budget, same seed).

    EDGEWISE_DATA=../shared/data python benchmarks/ondevice-train/selection-transfer.py
"""

import argparse
import dataclasses
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

from _subjects import RESULTS
from edge_shared.architectures import mobile
from edge_shared.artifacts import save_model
from edge_shared.data.vision import load_images
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from edge_shared.training import TrainConfig, evaluate
from edge_shared.training import fit as train
from ondevice_train.compare import half_width
from ondevice_train.fit import FitConfig, _coloured, rank, run
from ondevice_train.selection.importance import Ranking

parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--train", type=int, default=320)
parser.add_argument("--budgets", type=int, default=9)
parser.add_argument("--methods", nargs="+", default=["sparse-update", "full-random", "trady", "medyate"])
parser.add_argument("--out", default=RESULTS / "ondevice-train-selection-transfer.json")
arguments = parser.parse_args()
DATA = Path(os.environ.get("EDGEWISE_DATA", "../shared/data")) / "vision"
BLOCKS = ((3, 16, 1), (3, 24, 2), (3, 24, 1), (3, 32, 2), (3, 32, 1), (3, 48, 1))
CONFIG = {
    "resolution": 16, "stem": {"out": 16, "kernel": 3, "stride": 1}, "classes": 10, "name": "small-mobile",
    "blocks": [{"kernel": 3, "expand": e, "out": o, "stride": s} for e, o, s in BLOCKS],
}  # fmt: skip


def images(name, limit):
    return _coloured(load_images(DATA / name, size=16, limit=limit, seed=0))


folder = Path(tempfile.mkdtemp()) / "pretrained"
source, target = images("fashion-mnist", 4000), images("mnist.npz", 1000)
network = mobile.module(mobile.MobileConfig.parse(CONFIG))
train(network, source.loader("train", 64, shuffle=True), None, TrainConfig(epochs=4, batch_size=64, lr=0.1), device="cpu")
source_accuracy = evaluate(network, source.loader("test", 500))["accuracy"]
save_model(folder, network.eval(), next(iter(source.loader("train", 2)))[0], classes=source.classes, onnx=False)
print("pretrained:", source_accuracy, flush=True)

# A small part of MNIST to learn from, a part that never changes to test on.
target = dataclasses.replace(target, train_x=target.train_x[: arguments.train], train_y=target.train_y[: arguments.train])
base = FitConfig(model=str(folder), data="mnist", batch_size=16, lr=0.05, epochs=arguments.epochs, rank_steps=30)
scores: Ranking = rank(base, data=source)  # offline, on the source task
ranking = {**dataclasses.asdict(scores), "layers": [dataclasses.asdict(row) for row in scores.layers]}
amounts = [round(60_000 * 1.6**i) for i in range(arguments.budgets)]
rows = []
partial = Path(arguments.out).with_suffix(".partial.json")
if partial.exists():
    rows = read_json(partial)
done = {(row["method"], row["budget_bytes"], row["seed"]) for row in rows}
for seed in range(arguments.seeds):
    for amount in amounts:
        for method in arguments.methods:
            if (method, amount, seed) in done:
                continue
            config = dataclasses.replace(base, method=method, budget=str(amount), seed=seed, ranking=ranking)
            result = run(config, data=target, verbose=False)
            rows.append(
                {
                    "method": method, "budget_bytes": amount, "seed": seed, "test_accuracy": result.metrics["test_accuracy"],
                    "measured_total_bytes": result.cost["measured_total_bytes"],
                    "measured_saved_bytes": result.cost["measured_saved_bytes"],
                    "predicted_equals_measured": all(
                        e.predicted_total_bytes == e.measured_total_bytes and e.predicted_saved_bytes == e.measured_saved_bytes
                        for e in result.selections
                    ),
                }
            )  # fmt: skip
            assert rows[-1]["measured_total_bytes"] <= amount
            write_json(partial, rows)
    print("seed", seed, flush=True)


def of(method, amount):
    return [r["test_accuracy"] for r in sorted(rows, key=lambda r: r["seed"]) if r["method"] == method and r["budget_bytes"] == amount]


summary, paired = [], []
for method in arguments.methods:
    for amount in amounts:
        values = of(method, amount)
        summary.append({"method": method, "budget_bytes": amount, "mean": statistics.fmean(values), "ci95": half_width(values)})
    if method != arguments.methods[0]:
        differences = [a - b for amount in amounts for a, b in zip(of(method, amount), of(arguments.methods[0], amount), strict=True)]
        mean, width = statistics.fmean(differences), half_width(differences)
        paired.append(
            {
                "method": method, "against": arguments.methods[0], "pairs": len(differences), "mean_difference": mean, "ci95": width,
                "wins": sum(d > 0 for d in differences), "t": mean / (statistics.stdev(differences) / math.sqrt(len(differences))),
                "by_budget": [
                    {"budget_bytes": amount, "mean_difference": statistics.fmean(d), "ci95": half_width(d)}
                    for amount in amounts
                    for d in [[a - b for a, b in zip(of(method, amount), of(arguments.methods[0], amount), strict=True)]]
                ],
            }
        )  # fmt: skip
        print(paired[-1], flush=True)
write_json(
    arguments.out,
    {
        "command": " ".join(["python benchmarks/ondevice-train/selection-transfer.py", *sys.argv[1:]]),
        "what": "Fashion-MNIST to MNIST, 16x16, small mobile network pretrained by this script; budgets are all training memory in bytes",
        "source_accuracy": source_accuracy,
        "train_images": len(target.train_y),
        "test_images": len(target.test_y),
        "epochs": arguments.epochs,
        "batch_size": base.batch_size,
        "seeds": arguments.seeds,
        "budgets_bytes": amounts,
        "all_budgets_kept_by_measurement": all(r["measured_total_bytes"] <= r["budget_bytes"] for r in rows),
        "all_predictions_equal_measurements": all(r["predicted_equals_measured"] for r in rows),
        "summary": summary,
        "paired": paired,
        "runs": rows,
        "network": CONFIG,
        "environment": environment(),
    },
)
partial.unlink()
