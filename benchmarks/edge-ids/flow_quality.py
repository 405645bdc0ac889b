"""PR-AUC, macro F1 and more of every flow detector on NF-BoT-IoT-v2, five seeds, with controls: an untrained network, and a raw-feature Isolation Forest.

Run: python benchmarks/edge-ids/flow_quality.py [MODEL ...]                          2,818 rows, each split
     python benchmarks/edge-ids/flow_quality.py --file botiot_reduced.csv.gz [MODEL ...]   278,781 rows, the paper's random split

The larger file is reduced_datasets/botiot_reduced.csv.gz of c2dc/fl-unsup-nids at f0f4a398. Intervals are 95 % Student-t over the seeds. The chronological split is
the same for every seed (file order: NF-v2 has no times). What is in the record already is not run again; delete it to start over.
"""

from __future__ import annotations

import argparse
import math
import os
import time
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
RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or ROOT / "benchmarks" / "results")
MINI = ROOT.parent / "shared" / "data" / "ids" / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz"
SEEDS = range(5)
FIGURES = ("pr_auc", "benign_pr_auc", "roc_auc", "macro_f1", "false_alarm_rate", "flows_per_second")
MODELS = (
    ("iforest", "minmax"), ("pca", "minmax"), ("hbos", "minmax"), ("cblof", "minmax"), ("iforest", "log1p"), ("cblof", "log1p"),
    ("edge-aware", "minmax"), ("simpleae", "minmax"), ("graphids", "minmax"), ("edge-aware", "log1p"),
)  # fmt: skip
LARGE = tuple((model, "minmax") for model in ("graphids", "iforest", "simpleae", "edge-aware", "pca", "hbos", "cblof"))
OFFICIAL = {"macro_f1": 0.8805, "pr_auc": 0.9973, "one_epoch_macro_f1": 0.883, "seeds": 1}


def interval(values: list[float | None]) -> dict[str, float | list[float]] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = float(np.mean(known))
    half = float(t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else 0.0
    return {"mean": mean, "half_width_95": half, "values": known}


def cell(path: Path, table, model: str, scaler: str, split: str) -> dict:
    """All seeds of one model, scaler and split."""
    results, seconds = [], []
    for seed in SEEDS:
        began = time.perf_counter()
        results.append(fit(FitConfig(str(path), model, split, scaler, seed=seed), table))
        seconds.append(time.perf_counter() - began)
    row = {"split": split, "model": model, "scaler": scaler, "threshold": results[0].threshold.rule, "fit_seconds": interval(seconds)}
    row["prevalence"] = interval([result.metrics["prevalence"] for result in results])
    row["test"] = {name: interval([result.metrics[name] for result in results]) for name in FIGURES}
    row["stream"] = {name: interval([result.metrics["stream"][name] for result in results]) for name in FIGURES}
    row["controls"] = {
        name: {figure: interval([result.controls[name][figure] for result in results]) for figure in FIGURES}
        for name in results[0].controls
    }
    row["best_epoch"] = [result.training["best_epoch"] for result in results if result.training]
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, default=MINI)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    path, large = arguments.file, arguments.file != MINI
    out = RESULTS / ("edge-ids-flow-large.json" if large else "edge-ids-flow-quality.json")
    table = read_all(FitConfig(str(path)))
    rows = read_json(out)["rows"] if out.is_file() else []
    done = {(row["split"], row["model"], row["scaler"]) for row in rows}
    for model, scaler in LARGE if large else MODELS:
        for split in ("random",) if large else PROTOCOLS:
            if (arguments.models and model not in arguments.models) or (split, model, scaler) in done:
                continue
            row = cell(path, table, model, scaler, split)
            rows.append(row)
            pr, f1 = row["test"]["pr_auc"], row["test"]["macro_f1"]
            print(split, model, scaler, *(f"{v['mean']:.3f}±{v['half_width_95']:.3f}" for v in (pr, f1) if v), flush=True)
            document = {
                "command": "python benchmarks/edge-ids/flow_quality.py" + f" --file {path.name}" * large, "seeds": list(SEEDS), "synthetic": False,
                "data": {"name": path.name, "sha256": fingerprint(path), "flows": len(table), "benign": int((table.label == 0).sum())},
                "environment": environment(), "settings": asdict(FitConfig("")), "rows": rows,
            }  # fmt: skip
            write_json(out, document | ({"official_code": OFFICIAL} if large else {}))


if __name__ == "__main__":
    main()
