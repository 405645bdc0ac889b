"""The audit of a table of predictions beside fairlearn's metrics: equal values, and the time of each on the same arrays, in turn.

    python benchmarks/fairnet/audit_peer.py

fairlearn: MetricFrame of accuracy by label and group, demographic parity and equalised odds differences, each without intervals (its own
bootstrap refits every metric for each draw; 30 draws are timed and their cost per draw is stated). Ours: all of them, with and without 1,000
bootstrap draws. Writes benchmarks/results/fairnet-audit-peer.json.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from fairlearn.metrics import MetricFrame, demographic_parity_difference, equalized_odds_difference
from fairnet.audit import Predictions, audit
from sklearn.metrics import accuracy_score

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
REPEATS, DRAWS, FAIRLEARN_DRAWS = 5, 1000, 30


def main() -> None:
    rows = {str(size): measure(size) for size in (10_000, 100_000)}
    write_json(
        RESULTS / "fairnet-audit-peer.json",
        {"command": "python benchmarks/fairnet/audit_peer.py", "environment": environment(), "seed": 0, "repeats": REPEATS, "rows": rows},
    )


def measure(size: int) -> dict[str, Any]:
    """Both on one table: two classes, four groups, errors that depend on the group."""
    random = np.random.default_rng(0)
    y, g = random.integers(2, size=size), random.integers(4, size=size)
    p = np.where(random.random(size) < 0.05 + 0.05 * g, 1 - y, y)
    table = Predictions(tuple(y.astype(str)), tuple(p.astype(str)), tuple(g.astype(str)))

    def peer() -> dict[str, float]:
        frame = MetricFrame(metrics=accuracy_score, y_true=y, y_pred=p, sensitive_features={"label": y, "group": g})
        return {
            "worst": float(frame.by_group.min()),
            "parity": float(demographic_parity_difference(y, p, sensitive_features=g)),
            "odds": float(equalized_odds_difference(y, p, sensitive_features=g)),
        }

    def own(draws: int) -> dict[str, float | None]:
        found = audit(table, positive="1", resamples=draws)
        return {
            "worst": found.worst_group.accuracy.value,
            "parity": found.demographic_parity_difference.value,
            "odds": found.equalized_odds_difference.value,
        }

    def peers_intervals() -> Any:
        return MetricFrame(
            metrics=accuracy_score, y_true=y, y_pred=p, sensitive_features={"label": y, "group": g},
            n_boot=FAIRLEARN_DRAWS, ci_quantiles=[0.025, 0.975], random_state=0,
        )  # fmt: skip

    work = {"fairlearn": peer, "edgewise": lambda: own(0), "edgewise_with_intervals": lambda: own(DRAWS)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    values: dict[str, Any] = {}
    for _ in range(REPEATS):
        for name, call in work.items():
            start = time.process_time()
            values[name] = call()
            seconds[name].append(time.process_time() - start)
    difference = max(abs(values["fairlearn"][key] - values["edgewise"][key]) for key in ("worst", "parity", "odds"))
    found: dict[str, Any] = {f"{name}_cpu_seconds": float(np.median(times)) for name, times in seconds.items()}
    found["largest_difference"] = difference
    found["times_faster"] = found["fairlearn_cpu_seconds"] / found["edgewise_cpu_seconds"]
    if size <= 100_000:
        start = time.process_time()
        peers_intervals()
        found["fairlearn_cpu_seconds_per_draw"] = (time.process_time() - start) / FAIRLEARN_DRAWS
        found["edgewise_cpu_seconds_per_draw"] = (found["edgewise_with_intervals_cpu_seconds"] - found["edgewise_cpu_seconds"]) / DRAWS
    print(size, found, flush=True)
    return found


if __name__ == "__main__":
    main()
