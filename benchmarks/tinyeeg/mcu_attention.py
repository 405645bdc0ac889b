"""The firmware of apps/mcu-attention on the emulated Cortex-M4: calibrated on the device against as shipped, several synthetic wearers.

Run: python benchmarks/tinyeeg/mcu_attention.py [SEEDS]
Needs make, gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm. Instructions are QEMU's count, not cycles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edge_shared.files import write_json
from edge_shared.report import environment

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-mcu-attention.json"


def main() -> None:
    runs = []
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        with tempfile.TemporaryDirectory() as folder:
            command = [Path(sys.executable).with_name("mcu-attention"), "run", "--seed", str(seed), "--out", f"{folder}/out", "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        runs.append({"seed": seed, **found["metrics"], **found["cost"]})
        means = {key: sum(run[key] for run in runs) / len(runs) for key in ("balanced_accuracy_calibrated", "balanced_accuracy_shipped")}
        write_json(OUT, {"command": "mcu-attention run --seed SEED --out OUT --json", "environment": environment(), "synthetic": True,
                         "calibration_s": 60, "mean": means, "runs": runs})  # fmt: skip
    print(means, file=sys.stderr)


if __name__ == "__main__":
    main()
