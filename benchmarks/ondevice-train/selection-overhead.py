"""What each selector costs beside training: seconds to choose once an epoch, and bytes that it keeps from epoch to epoch.

    python benchmarks/ondevice-train/selection-overhead.py

MCUNet-in1 at 64x64 on the bundled digits, 256 kB for training (NEq, SCoTTi and Velocity, which keep whole inputs: their own limits),
two epochs of 12 steps. Seconds are wall time; those of a step in the same run stand beside them. Written after every method.
"""

from __future__ import annotations

import torch
from _subjects import RESULTS
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from ondevice_train.fit import FitConfig, load_data, rank, run

FILE = RESULTS / "ondevice-train-selection-overhead.json"
METHODS = {
    "sparse-update": "256kB", "full-random": "256kB", "trady": "256kB", "medyate": "256kB", "det-rgn": "256kB",
    "velocity": "22410params", "neq": None, "scotti": None, "last-k": "256kB",
}  # fmt: skip
BATCH, STEPS = 8, 12


def main() -> None:
    torch.set_num_threads(1)
    base = FitConfig(
        model="mcunet-in1", data="digits", image_size=64, limit=BATCH * STEPS, epochs=3, batch_size=BATCH, lr=0.01, calibrate=2
    )
    data = load_data(base)
    from dataclasses import asdict, replace

    scores = rank(replace(base, rank_steps=4), data=data)
    ranking = {**asdict(scores), "layers": [asdict(row) for row in scores.layers]}
    rows = read_json(FILE)["rows"] if FILE.exists() else {}
    for method, budget in METHODS.items():
        if method in rows:
            continue
        result = run(replace(base, method=method, budget=budget, ranking=ranking), data=data, verbose=False)
        step = result.cost["step_seconds"]
        choose = result.cost["selector_seconds_per_epoch"]
        rows[method] = {
            "budget": budget, "seconds_to_choose": choose, "state_bytes": result.cost["selector_state_bytes"], "step_seconds": step,
            "steps_worth": choose / step, "measured_total_bytes": result.cost["measured_total_bytes"],
        }  # fmt: skip
        print(method, rows[method], flush=True)
        write_json(FILE, {
            "command": "python benchmarks/ondevice-train/selection-overhead.py", "what": " ".join(__doc__.split("\n\n")[2].split()),
            "batch": BATCH, "threads": 1, "seed": 0, "rows": rows, "environment": environment(),
        })  # fmt: skip


if __name__ == "__main__":
    main()
