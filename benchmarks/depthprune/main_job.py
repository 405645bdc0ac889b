"""The main job on the digits, as a user runs it, once per seed: what the table before/after says.

Run: python benchmarks/depthprune/main_job.py [SEEDS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _record import write

KEEP = ("accuracy_before", "accuracy_after", "latency_onnxruntime_ratio", "latency_torch_ratio", "latency_onnxruntime_before_ms",
        "latency_onnxruntime_after_ms", "latency_torch_before_ms", "latency_torch_after_ms", "onnx_max_abs_error", "certificates", "merge_refused")  # fmt: skip


def main() -> None:
    rows = []
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                str(Path(sys.executable).with_name("depthprune")),
                "prune",
                "--data",
                "digits",
                "--seed",
                str(seed),
                "--out",
                str(Path(folder) / "run"),
                "--json",
            ]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            document = json.loads(run.stdout)
        rows.append(
            {
                "seed": seed,
                "removed": len(document["metrics"]["removed"]),
                **{k: document["metrics"][k] for k in KEEP},
                "cost": document["cost"],
            }
        )
        print(seed, rows[-1]["accuracy_before"], rows[-1]["accuracy_after"], rows[-1]["latency_onnxruntime_ratio"], flush=True)
        write("main-job", "depthprune prune --data digits --seed SEED --out DIR", rows, summary=summary(rows))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: mean accuracy before and after in percent, the smallest and largest speed-up in ONNX Runtime."""
    fast = [1 / row["latency_onnxruntime_ratio"]["median"] for row in rows]
    return {
        "seeds": len(rows), "accuracy_before": sum(100 * r["accuracy_before"] for r in rows) / len(rows),
        "accuracy_after": sum(100 * r["accuracy_after"] for r in rows) / len(rows), "speed_up_least": min(fast), "speed_up_most": max(fast),
        "removed": [row["removed"] for row in rows],
    }  # fmt: skip


if __name__ == "__main__":
    main()
