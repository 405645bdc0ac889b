"""How well the sum of timed blocks foretells the time of a whole network, on this machine.

    python benchmarks/moofa/latency.py

For each space: every block timed alone, then random networks timed as a whole in ONNX Runtime (float32, one thread).
Writes benchmarks/results/moofa-latency.json after every space.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from edge_shared.files import write_json
from moofa.budget import Target
from moofa.costs import CostTable
from moofa.latency import machine, measure, measure_space
from moofa.presets import PRESETS
from scipy.stats import kendalltau

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "moofa-latency.json"
SPACES = [("digits8", None), ("mnist28+", None), ("c32", None), ("moofa-v3", (128, 160)), ("ofa-mobilenet-v3", (128, 160))]
NETWORKS = 20


def one(name: str, resolutions: tuple[int, ...] | None) -> dict:
    space = PRESETS[name]()
    if resolutions:
        space = space.model_copy(update={"resolutions": resolutions})
    started = time.perf_counter()
    table = measure_space(space, milliseconds=10)
    seconds = time.perf_counter() - started
    costs = CostTable(space, Target(), table)
    ends = costs.genes.encode([space.smallest(), space.largest()])
    rows = np.vstack([ends, costs.genes.sample(NETWORKS - 2, np.random.default_rng(0))])
    found = costs.costs(rows)
    measured = np.array([measure(space.config(costs.genes.decode(row)), milliseconds=200).median_ms for row in rows])
    ratio = found.latency_ms / measured
    return {
        "space": name,
        "resolutions": list(space.resolutions),
        "blocks_timed": int(np.prod(np.shape(table.blocks))),
        "table_seconds": seconds,
        "networks": len(rows),
        "kendall_tau": float(kendalltau(found.latency_ms, measured).statistic),
        "kendall_tau_of_macs": float(kendalltau(found.macs, measured).statistic),
        "estimate_over_measured_median": float(np.median(ratio)),
        "absolute_relative_error_median": float(np.median(np.abs(ratio - 1))),
        "absolute_relative_error_largest": float(np.abs(ratio - 1).max()),
        "measured_ms": measured.tolist(),
        "estimated_ms": found.latency_ms.tolist(),
    }


def main() -> None:
    rows: list[dict] = []
    load = os.getloadavg()[0]
    for name, resolutions in SPACES:
        rows.append(one(name, resolutions))
        print({key: value for key, value in rows[-1].items() if not key.endswith("_ms")}, file=sys.stderr, flush=True)
        write_json(
            RESULTS,
            {"command": "python benchmarks/moofa/latency.py", "machine": machine(1) | {"load_at_start": load}, "seed": 0, "spaces": rows},
        )


if __name__ == "__main__":
    main()
