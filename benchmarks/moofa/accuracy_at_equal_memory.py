"""Accuracy at equal peak memory: a MOOFA-designed space against one whose widths grow as Once-For-All's do.

Both supernets have the same stem, stages, depths, kernels, expansions, training and search; only the widths differ. For each
budget the best predicted network within it is taken and its accuracy on the test part counted once.

    python benchmarks/moofa/accuracy_at_equal_memory.py --data digits --seeds 5
    python benchmarks/moofa/accuracy_at_equal_memory.py --data mnist --path ../shared/data/vision/mnist.npz --seeds 5

Writes benchmarks/results/moofa-accuracy-DATA.json after every run and goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from edge_shared.data.vision import load_images
from edge_shared.files import write_json
from edge_shared.report import environment
from moofa.budget import Budget, Target
from moofa.costs import CostTable
from moofa.measure import Gauge, label, sample_balanced
from moofa.predictor import PredictorConfig, fit_predictor
from moofa.search import search
from moofa.space import load_space
from moofa.supernet import Supernet
from moofa.training import SupernetConfig, train_supernet
from scipy.stats import t

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = {
    "digits": {"spaces": ["digits8", "digits8-control"], "epochs": 20, "limit": None, "labels": 150, "gauge": None},
    "mnist": {"spaces": ["mnist28", "mnist28-control"], "epochs": 5, "limit": 3000, "labels": 80, "gauge": 800},
}
BUDGETS = 6


def one_run(space_name: str, data: str, path: str, seed: int, settings: dict) -> dict:
    images = load_images(path, limit=settings["limit"], seed=seed)
    space = load_space(space_name)
    torch.manual_seed(seed)
    supernet = Supernet(space)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = SupernetConfig(epochs=settings["epochs"], seed=seed)
        loader = images.loader("train", config.batch_size, shuffle=True, seed=seed)
        train_supernet(supernet, loader, config, Path(folder), device="cpu", checkpoint_steps=None)
    trained = time.perf_counter()
    table = CostTable(space, Target("D", 8))
    rows = sample_balanced(table, settings["labels"], seed)
    gauge = Gauge.of(images, "val", limit=settings["gauge"])
    accuracies = label(supernet, rows, gauge, {}, lambda known: None)
    predictor, quality = fit_predictor(space, rows, accuracies, PredictorConfig(seed=seed))
    test = Gauge.of(images, "test")
    ends = table.costs(table.genes.encode([space.smallest(), space.largest()])).ram
    found = []
    for budget in budgets_of(data):
        result = search(table, predictor, Budget(ram=budget), seed=seed)
        found.append(
            {
                "budget": budget,
                "test_accuracy": test.accuracy(supernet, result.found.choice),
                "val_accuracy": gauge.accuracy(supernet, result.found.choice),
                "predicted": result.found.score,
                "utilisation": result.utilisation,
                "macs": result.found.costs["macs"],
                "flops": 2 * result.found.costs["macs"],
                "params": result.found.costs["params"],
                "flatness": result.found.costs["flatness"],
                "search_seconds": result.seconds,
            }
        )
    return {
        "space": space_name,
        "seed": seed,
        "train_seconds": trained - started,
        "kendall_tau": quality.kendall_tau,
        "rmse": quality.rmse,
        "smallest_ram": int(ends[0]),
        "largest_ram": int(ends[1]),
        "found": found,
        "train_images": len(images.train_y),
        "test_images": len(images.test_y),
    }


def budgets_of(data: str) -> list[int]:
    """Budgets inside the range that both spaces can meet."""
    low, high = 0, 1 << 60
    for name in SETTINGS[data]["spaces"]:
        space = load_space(name)
        table = CostTable(space, Target("D", 8))
        ends = table.costs(table.genes.encode([space.smallest(), space.largest()])).ram
        low, high = max(low, int(ends[0])), min(high, int(ends[1]))
    return [int(value) for value in np.linspace(low, high, BUDGETS)]


def summary(runs: list[dict], spaces: list[str]) -> list[dict]:
    rows = []
    for index, first in enumerate(runs[0]["found"]):
        row: dict = {"budget": first["budget"]}
        values = {}
        for space in spaces:
            mine = [run["found"][index] for run in runs if run["space"] == space]
            values[space] = np.array([found["test_accuracy"] for found in mine])
            row[space] = interval(values[space]) | {
                name: float(np.mean([found[name] for found in mine])) for name in ("utilisation", "flops", "flatness")
            }
        if len(values[spaces[0]]) == len(values[spaces[1]]):
            row["difference"] = interval(values[spaces[0]] - values[spaces[1]])
        rows.append(row)
    return rows


def use(runs: list[dict], spaces: list[str]) -> dict:
    """Share of the budget that the found networks use, over seeds and budgets."""
    result = {}
    for space in spaces:
        values = np.array([found["utilisation"] for run in runs if run["space"] == space for found in run["found"]])
        result[space] = {
            "found": len(values),
            "mean": float(values.mean()),
            "least": float(values.min()),
            "at_least_85_percent": float((values >= 0.85).mean()),
        }
    return result


def interval(values: np.ndarray) -> dict:
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "ci95": half, "seeds": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--path", help="data set by name or path; the name of --data if omitted")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    settings = SETTINGS[arguments.data]
    file = RESULTS / f"moofa-accuracy-{arguments.data}.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    for seed in range(arguments.seeds):
        for space in settings["spaces"]:
            if any(run["space"] == space and run["seed"] == seed for run in runs):
                continue
            runs.append(one_run(space, arguments.data, arguments.path or arguments.data, seed, settings))
            print(f"{space} seed {seed}: {runs[-1]['train_seconds']:.0f} s", file=sys.stderr, flush=True)
            write(file, arguments, settings, runs)
    write(file, arguments, settings, runs)


def write(file: Path, arguments: argparse.Namespace, settings: dict, runs: list[dict]) -> None:
    command = f"python benchmarks/moofa/accuracy_at_equal_memory.py --data {arguments.data} --seeds {arguments.seeds}"
    write_json(
        file,
        {
            "command": command,
            "machine": {"cpu": environment().processor, "cores": os.cpu_count(), "torch": torch.__version__},
            "settings": settings | {"memory_model": "D", "bits": 8, "batch_size": 64, "lr": 0.1, "schedule": "sandwich"},
            "use_of_budget": use(runs, settings["spaces"]),
            "summary": summary(runs, settings["spaces"]),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
