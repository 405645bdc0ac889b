"""Accuracy at equal peak memory: a MOOFA-designed space against one whose widths grow as Once-For-All's do.

Both supernets have the same stem, stages, depths, kernels, expansions, training and search; only the widths differ. For each
budget the best predicted network within it is taken and its accuracy on the test part counted once.

    python benchmarks/moofa/accuracy_at_equal_memory.py --data digits --seeds 5
    python benchmarks/moofa/accuracy_at_equal_memory.py --data mnist --path ../shared/data/vision/mnist.npz --seeds 5

Supernets and the accuracies that their predictors learn from are kept in a temporary folder (`--train-only` stops there);
benchmarks/results/moofa-accuracy-DATA.json is written after every run and made anew from them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from edge_shared.artifacts import load_weights
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.files import write_bytes, write_json
from edge_shared.report import environment
from moofa.budget import Budget, Target
from moofa.costs import CostTable
from moofa.measure import Gauge, label, sample_balanced
from moofa.predictor import PredictorConfig, fit_predictor
from moofa.search import search
from moofa.space import Genes, load_space
from moofa.supernet import Supernet
from moofa.training import SupernetConfig, train_supernet
from scipy.stats import kendalltau, t

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
FOLDER = Path(tempfile.gettempdir()) / "moofa-accuracy"
SETTINGS = {
    "digits": {"spaces": ["digits8", "digits8-control"], "epochs": 20, "limit": None, "labels": 150, "gauge": None},
    "mnist": {"spaces": ["mnist28", "mnist28-control"], "epochs": 5, "limit": 3000, "labels": 80, "gauge": 800},
}
BUDGETS = 6


def trained(space_name: str, data: str, path: str, seed: int, settings: dict) -> tuple[Supernet, np.ndarray, np.ndarray, ImageSet]:
    """A supernet, networks of it that were measured, and their accuracies on the validation part; kept in a folder."""
    images = load_images(path, limit=settings["limit"], seed=seed)
    space = load_space(space_name)
    folder = FOLDER / f"{data}-{space_name}-{seed}"
    weights, labels = folder / "supernet.safetensors", folder / "labels.json"
    torch.manual_seed(seed)
    supernet = Supernet(space)
    if not weights.is_file():
        config = SupernetConfig(epochs=settings["epochs"], seed=seed)
        loader = images.loader("train", config.batch_size, shuffle=True, seed=seed)
        started = time.perf_counter()
        train_supernet(supernet, loader, config, folder, device="cpu", checkpoint_steps=200)
        print(f"{space_name} seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        write_bytes(weights, safetensors.torch.save(dict(supernet.state_dict())))
    supernet.load_state_dict(load_weights(weights))
    supernet.eval()
    table = CostTable(space, Target("D", 8))
    rows = sample_balanced(table, settings["labels"], seed)
    known = json.loads(labels.read_text()) if labels.is_file() else {}
    gauge = Gauge.of(images, "val", limit=settings["gauge"])
    return supernet, rows, label(supernet, rows, gauge, known, lambda values: write_json(labels, values)), images


def one_run(space_name: str, data: str, path: str, seed: int, settings: dict) -> dict:
    supernet, rows, accuracies, images = trained(space_name, data, path, seed, settings)
    space = supernet.space
    table = CostTable(space, Target("D", 8))
    gauge, test = Gauge.of(images, "val", limit=settings["gauge"]), Gauge.of(images, "test")
    ends = table.costs(table.genes.encode([space.smallest(), space.largest()])).ram
    measured: dict = {}
    run: dict = {
        "space": space_name,
        "seed": seed,
        "smallest_ram": int(ends[0]),
        "largest_ram": int(ends[1]),
        "train_images": len(images.train_y),
        "val_images": len(gauge.labels),
        "test_images": len(images.test_y),
        "ranking": ranking(supernet, rows, accuracies, images, seed),
    }
    for name, monotone in (("found", True), ("found_free", False)):
        predictor, quality = fit_predictor(space, rows, accuracies, PredictorConfig(seed=seed, monotone=monotone))
        run[f"predictor_{name}"] = asdict(quality)
        found, hits = [], 0
        for budget in budgets_of(data):
            result = search(table, predictor, Budget(ram=budget), seed=seed)
            if monotone and result.method == "exhaustive":
                other = search(table, predictor, Budget(ram=budget), seed=seed, method="evolution")
                hits += other.found.score == result.found.score
            choice = result.found.choice
            if choice not in measured:
                measured[choice] = (test.accuracy(supernet, choice), gauge.accuracy(supernet, choice))
            found.append(
                {
                    "budget": budget,
                    "test_accuracy": measured[choice][0],
                    "val_accuracy": measured[choice][1],
                    "predicted": result.found.score,
                    "utilisation": result.utilisation,
                    "flops": 2 * result.found.costs["macs"],
                    "params": result.found.costs["params"],
                    "flatness": result.found.costs["flatness"],
                    "search_seconds": result.seconds,
                }
            )
        run[name] = found
        if monotone:
            run["evolution_found_optimum"] = hits
    return run


def ranking(supernet: Supernet, rows: np.ndarray, accuracies: np.ndarray, images: ImageSet, seed: int) -> dict:
    """Kendall's tau of five-fold predictions with accuracies on the validation and on test images, for both predictors."""
    test = Gauge.of(images, "test", limit=1000)
    genes = Genes(supernet.space)
    unseen = np.array([test.accuracy(supernet, genes.decode(row)) for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    result = {"labels_with_test": float(kendalltau(accuracies, unseen).statistic)}
    for name, monotone in (("monotone", True), ("free", False)):
        predicted = np.zeros(len(rows))
        for fold in range(5):
            held = order[fold::5]
            rest = np.setdiff1d(order, held)
            config = PredictorConfig(seed=seed, monotone=monotone, held_out=0.01)
            predicted[held] = fit_predictor(supernet.space, rows[rest], accuracies[rest], config)[0](rows[held])
        result[f"{name}_with_val"] = float(kendalltau(predicted, accuracies).statistic)
        result[f"{name}_with_test"] = float(kendalltau(predicted, unseen).statistic)
    return result


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
            free = np.array([run["found_free"][index]["test_accuracy"] for run in runs if run["space"] == space])
            row[space]["less_free_predictor"] = interval(values[space] - free)
        if len(values[spaces[0]]) == len(values[spaces[1]]):
            row["difference"] = interval(values[spaces[0]] - values[spaces[1]])
        rows.append(row)
    return rows


def use(runs: list[dict], spaces: list[str], kind: str) -> dict:
    """Share of the budget that the found networks use, over seeds and budgets, and their accuracy on the test part."""
    result = {}
    for space in spaces:
        found = [found for run in runs if run["space"] == space for found in run[kind]]
        values = np.array([one["utilisation"] for one in found])
        result[space] = {
            "found": len(values),
            "mean": float(values.mean()),
            "least": float(values.min()),
            "at_least_85_percent": float((values >= 0.85).mean()),
            "test_accuracy": float(np.mean([one["test_accuracy"] for one in found])),
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
    parser.add_argument("--train-only", action="store_true", help="train and measure, choose nothing yet")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    settings = SETTINGS[arguments.data]
    file = RESULTS / f"moofa-accuracy-{arguments.data}.json"
    runs = []
    for seed in range(arguments.seeds):
        for space in settings["spaces"]:
            if arguments.train_only:
                trained(space, arguments.data, arguments.path or arguments.data, seed, settings)
                continue
            runs.append(one_run(space, arguments.data, arguments.path or arguments.data, seed, settings))
    if runs:
        write(file, arguments, settings, runs)


def write(file: Path, arguments: argparse.Namespace, settings: dict, runs: list[dict]) -> None:
    command = f"python benchmarks/moofa/accuracy_at_equal_memory.py --data {arguments.data} --seeds {arguments.seeds}"
    write_json(
        file,
        {
            "command": command,
            "machine": {"cpu": environment().processor, "cores": os.cpu_count(), "torch": torch.__version__},
            "settings": settings | {"memory_model": "D", "bits": 8, "batch_size": 64, "lr": 0.1, "schedule": "sandwich"},
            "use_of_budget": use(runs, settings["spaces"], "found"),
            "use_of_budget_free_predictor": use(runs, settings["spaces"], "found_free"),
            "ranking": {name: float(np.mean([run["ranking"][name] for run in runs])) for name in runs[0]["ranking"]},
            "evolution_found_optimum": sum(run["evolution_found_optimum"] for run in runs),
            "evolution_searches": sum(len(run["found"]) for run in runs),
            "summary": summary(runs, settings["spaces"]),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
