"""SYNTHETIC: which detectors see an odd flow inside a busy benign pair of hosts, and an attack from a new host.

Run: python benchmarks/edge-ids/flow_hard_cases.py [MODEL ...]
Share of planted flows that score above the 99 % quantile of benign test flows, and ROC AUC against them; chronological split, three seeds of data and model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from edge_ids.flow.fit import FitConfig, fit
from edge_ids.flow.synthetic import hard_cases
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from sklearn.metrics import roc_auc_score

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "edge-ids-flow-hard-cases.json"
CASES = ("odd-flow", "new-host")


def main() -> None:
    models = sys.argv[1:] or ["graphids", "simpleae", "edge-aware", "iforest", "pca", "hbos", "cblof"]
    rows = [row for row in (read_json(OUT)["rows"] if OUT.is_file() else []) if row["model"] not in models]
    for model in models:
        found: dict[str, dict[str, list[float]]] = {case: {"detected_at_1_percent_false_alarms": [], "roc_auc": []} for case in CASES}
        for seed in range(3):
            table = hard_cases(6000, 30, seed)
            result = fit(FitConfig("synthetic", model, "chronological", seed=seed, preset="own" if model == "graphids" else "auto",
                                   epochs=10 if model == "graphids" else 40, controls=False), table)  # fmt: skip
            test = table.rows(result.test_rows)
            scores = result.detector.score_table(test)
            benign = scores[test.label == 0]
            for case in CASES:
                planted = scores[test.attack == case]
                found[case]["detected_at_1_percent_false_alarms"].append(float((planted > np.quantile(benign, 0.99)).mean()))
                label = np.repeat([0, 1], [len(benign), len(planted)])
                found[case]["roc_auc"].append(float(roc_auc_score(label, np.concatenate([benign, planted]))))
        rows.append({"model": model, **found})
        print(model, {case: {name: round(float(np.mean(values)), 3) for name, values in found[case].items()} for case in CASES}, flush=True)
        write_json(OUT, {
            "command": "python benchmarks/edge-ids/flow_hard_cases.py", "synthetic": True, "generator": "edge_ids.flow.synthetic.hard_cases(6000, 30)",
            "seeds": list(range(3)), "environment": environment(), "rows": rows,
        })  # fmt: skip


if __name__ == "__main__":
    main()
