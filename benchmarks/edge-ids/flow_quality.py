"""PR-AUC, macro F1 and more of every flow detector on NF-BoT-IoT-v2 (2,818 real rows), each split, five seeds, with controls.

Run: python benchmarks/edge-ids/flow_quality.py [MODEL ...]
Intervals are 95 % Student-t over the seeds. The chronological split is the same for every seed (file order: NF-v2 has no times).
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from edge_ids.flow.fit import FitConfig, fit, read_all
from edge_ids.flow.sources import fingerprint
from edge_ids.flow.splits import PROTOCOLS
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from scipy.stats import t

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "results" / "edge-ids-flow-quality.json"
FILE = ROOT.parent / "shared" / "data" / "ids" / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz"
SEEDS = range(5)
FIGURES = ("pr_auc", "benign_pr_auc", "roc_auc", "macro_f1", "false_alarm_rate", "flows_per_second")
MODELS = (
    ("iforest", "minmax"), ("pca", "minmax"), ("hbos", "minmax"), ("cblof", "minmax"), ("iforest", "log1p"), ("cblof", "log1p"),
    ("edge-aware", "minmax"), ("simpleae", "minmax"), ("graphids", "minmax"), ("edge-aware", "log1p"),
)  # fmt: skip


def interval(values: list[float | None]) -> dict[str, float | list[float]] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = float(np.mean(known))
    half = float(t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else 0.0
    return {"mean": mean, "half_width_95": half, "values": known}


def main() -> None:
    chosen = sys.argv[1:] or [model for model, _ in MODELS]
    path = FILE
    table = read_all(FitConfig(str(path)))
    rows = [row for row in (read_json(OUT)["rows"] if OUT.is_file() else []) if row["model"] not in chosen]
    for model, scaler in [entry for entry in MODELS if entry[0] in chosen]:
        for split in PROTOCOLS:
            results = [fit(FitConfig(str(path), model, split, scaler, seed=seed), table) for seed in SEEDS]
            row = {"split": split, "model": model, "scaler": scaler, "threshold": results[0].threshold.rule}
            row["prevalence"] = interval([result.metrics["prevalence"] for result in results])
            row["test"] = {name: interval([result.metrics[name] for result in results]) for name in FIGURES}
            row["stream"] = {name: interval([result.metrics["stream"][name] for result in results]) for name in FIGURES}
            row["controls"] = {
                name: {figure: interval([result.controls[name][figure] for result in results]) for figure in FIGURES}
                for name in results[0].controls
            }
            row["best_epoch"] = [result.training["best_epoch"] for result in results if result.training]
            rows.append(row)
            pr, f1 = row["test"]["pr_auc"], row["test"]["macro_f1"]
            print(split, model, scaler, *(f"{v['mean']:.3f}±{v['half_width_95']:.3f}" for v in (pr, f1) if v), flush=True)
            write_json(OUT, {
                "command": "python benchmarks/edge-ids/flow_quality.py", "seeds": list(SEEDS), "synthetic": False,
                "data": {"name": path.name, "sha256": fingerprint(path), "flows": len(table)}, "environment": environment(),
                "settings": asdict(FitConfig("")), "rows": rows,
            })  # fmt: skip


if __name__ == "__main__":
    main()
