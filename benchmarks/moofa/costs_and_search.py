"""Speed of the vectorised costs and of the search, optimum of digits8, flatness of designed spaces.

    python benchmarks/moofa/costs_and_search.py

What is searched is a rugged artificial score; trained predictors are in accuracy_at_equal_memory.py.
Writes benchmarks/results/moofa-costs-and-search.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
from edge_shared.devices import load
from edge_shared.files import write_json
from edge_shared.report import environment
from moofa.budget import Budget, Target, device_budget
from moofa.costs import CostTable
from moofa.design import DesignConfig, design
from moofa.presets import PRESETS
from moofa.search import search

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
DESIGNS = [
    (8, 1, 5_408, "A", None),
    (28, 1, 14_912, "A", None),
    (28, 1, 16_000, "D", None),
    (32, 3, 30_000, "A", None),
    (32, 3, 40_000, "D", None),
    (96, 3, 100_000, "C", None),
    (224, 3, 400_000, "A", None),
    (96, 3, None, "C", "stm32f746"),
    (128, 3, None, "C", "stm32h743"),
    (64, 3, None, "C", "nrf52840"),
]


def rugged(table: CostTable, seed: int):
    rng = np.random.default_rng(seed)
    size = len(table.genes.sizes)
    line, square = 0.02 * rng.normal(size=size) + 0.02, 0.01 * rng.normal(size=(size, size))

    def score(rows: np.ndarray) -> np.ndarray:
        x = rows / np.maximum(table.genes.sizes - 1, 1)
        return np.round(x @ line + ((x @ square) * x).sum(1), 9)

    return score


def rates() -> list[dict]:
    result = []
    for name in ("digits8", "mnist28+", "moofa-v3", "ofa-mobilenet-v3"):
        for model in "ABCDE":
            started = time.perf_counter()
            table = CostTable(PRESETS[name](), Target(model, 8))
            built = time.perf_counter() - started
            rows = table.genes.sample(100_000, np.random.default_rng(0))
            started = time.perf_counter()
            table.costs(rows)  # model E fills its table of patched beginnings here
            first = time.perf_counter() - started
            times = []
            for _ in range(3):
                started = time.perf_counter()
                table.costs(rows)
                times.append(time.perf_counter() - started)
            result.append(
                {
                    "space": name,
                    "memory_model": model,
                    "networks_per_second": round(1e5 / float(np.median(times))),
                    "table_seconds": built,
                    "first_100000_seconds": first,
                }
            )
    return result


def optimum(table: CostTable, score) -> dict:
    rows = table.genes.enumerate()
    values, costs = score(rows), table.costs(rows)
    budgets = np.unique(costs.ram)
    hits, seconds, evaluated = 0, [], []
    for seed in range(20):
        budget = Budget(ram=int(budgets[-1 - seed % len(budgets)]))
        found = search(table, score, budget, method="evolution", seed=seed)
        hits += bool(found.found.score == values[budget.allows(costs)].max())
        seconds.append(found.seconds)
        evaluated.append(found.evaluated)
    return {
        "seeds": 20,
        "optimum_found": hits,
        "networks": len(rows),
        "median_evaluated": int(np.median(evaluated)),
        "longest_seconds": max(seconds),
    }


def speed(name: str, model: str, seed: int, count: int = 12) -> dict:
    """Whole searches, each with a table of costs made anew: what a user waits for once the predictor exists."""
    table = CostTable(PRESETS[name](), Target(model, 8))
    ends = table.costs(table.genes.encode([table.space.smallest(), table.space.largest()])).ram
    score, found, wall, cpu = rugged(table, seed), [], [], []
    for ram in np.linspace(ends[0], ends[1], count):
        started, busy = time.perf_counter(), time.process_time()
        found.append(search(CostTable(table.space, table.target), score, Budget(ram=int(ram)), seed=0))
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - busy)
    return {
        "space": table.space.name,
        "memory_model": model,
        "networks": table.space.size,
        "budgets": count,
        "longest_search_seconds": max(wall),
        "longest_search_cpu_seconds": max(cpu),
        "most_evaluated": max(one.evaluated for one in found),
        "monotone": [one.found.score for one in found] == sorted(one.found.score for one in found),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    digits = CostTable(PRESETS["digits8"](), Target("D", 8))
    score = rugged(digits, 7)
    designs = []
    for resolution, channels, ram, model, name in DESIGNS:
        device = load(name) if name else None
        target = Target(model, 8, device)
        budget = device_budget(target) if device else Budget(ram=ram)
        found = design(budget, target, DesignConfig(resolution, channels))
        designs.append(
            {
                "resolution": resolution, "ram": budget.ram, "flash": budget.flash, "device": name, "memory_model": model, "widths": [stage.width for stage in found.space.stages],
                "flatness_largest": found.largest["flatness"], "flatness_smallest": found.smallest["flatness"],
                "use_largest": found.largest["ram"] / (budget.ram or 1), "control_widths": found.control.get("widths"),
                "control_flatness": found.control.get("flatness"), "same_stages_widths": found.same_stages.get("widths"),
                "same_stages_flatness": found.same_stages.get("flatness"),
            }
        )  # fmt: skip
    write_json(
        RESULTS / "moofa-costs-and-search.json",
        {
            "command": "python benchmarks/moofa/costs_and_search.py",
            "score": "artificial, with interactions between all entries; says nothing of accuracy",
            "machine": {"cpu": environment().processor or platform.machine(), "cores": os.cpu_count(), "load_at_start": os.getloadavg()[0]},
            "costs": rates(),
            "optimum_digits8": optimum(digits, score),
            "search": [
                speed(name, model, 0, 12 if model == "D" else 6)
                for model in "DE"
                for name in ("digits8", "mnist28+", "moofa-v3", "ofa-mobilenet-v3")
            ],
            "designs": designs,
        },
    )


if __name__ == "__main__":
    main()
