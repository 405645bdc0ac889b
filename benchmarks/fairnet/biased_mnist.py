"""Biased-MNIST-like: all methods on the same splits, five paired seeds, a balanced test of 10,000 digits.

6,000 training digits at rho 0.97, 0.90, 0.95 and, as a check that no method hurts where there is no shortcut, 0.1; 1,000 biased
digits for validation ("always": with the threshold off that keeps them from acting there); 1,000 balanced digits for the methods that need some (FFW, DFR, control masks); and vanilla against Voronoi on all
but 2,000 of the 60,000 training digits at rho 0.99. Digits are 14 pixels a side, the network is the three-layer perceptron of
Multi-Color MNIST, training is short: cheap enough for one core, and not the papers' setting, so that no number here is to be set beside
theirs. The last epoch counts; nothing is chosen on the test part, except that the learning rate and patience of FFW's gates were picked
once, on seed 0.

Run: python benchmarks/fairnet/biased_mnist.py [--rho 0.97] [--stages trained weights channels] [--work DIR]
MNIST: mnist.npz in $EDGEWISE_DATA/vision. Stops and goes on cell by cell.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from edge_shared.files import plain, write_json
from edge_shared.report import environment
from fairnet.compare import compare

DATA = Path(os.environ.get("EDGEWISE_DATA") or Path(__file__).parents[3] / "shared" / "data") / "vision" / "mnist.npz"
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "fairnet-biased-mnist.json"
PARTIAL = OUT.with_suffix(".partial.json")
"""The record until what the ledger quotes is in it."""
QUOTED = ("trained", "weights", "channels")
WORK = Path.home() / ".cache" / "edgewise" / "benchmarks" / "fairnet"
SEEDS = range(5)
PIXELS = 14
RHOS = [0.97, 0.9, 0.1, 0.95]
SMALL = {"images": 6000, "settings": {"model": "mlp", "epochs": 15, "batch_size": 200, "lr": 0.002}}
MASKS = ["ffw", "voronoi-ffw", "random-mask", "magnitude-mask"]
STAGES: dict[str, dict[str, Any]] = {
    "trained": SMALL | {"methods": ["voronoi", "dfr", "reweight", "groupdro", "jtt", "lff"], "rhos": RHOS},
    "weights": SMALL | {"methods": MASKS, "rhos": RHOS, "granularity": "weights"},
    "channels": SMALL | {"methods": MASKS, "rhos": RHOS, "granularity": "channels"},
    "gamma-0": SMALL | {"methods": ["ffw"], "rhos": [0.97, 0.9], "granularity": "weights", "gamma": 0.0},
    "gamma-10": SMALL | {"methods": ["ffw"], "rhos": [0.97, 0.9], "granularity": "weights", "gamma": 10.0},
    "bise": SMALL | {"methods": ["bise"], "rhos": [0.9], "granularity": "channels"},
    "always": SMALL | {"methods": ["voronoi", "voronoi-ffw"], "rhos": [0.1], "granularity": "weights", "min_depth": 0.0},
    "full": {
        "images": 58000,
        "settings": {"model": "mlp", "epochs": 5, "batch_size": 200, "lr": 0.002},
        "methods": ["voronoi"],
        "rhos": [0.99],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--rho", nargs="*", type=float, default=[*RHOS, 0.99])
    parser.add_argument("--work", type=Path, default=WORK)
    asked = parser.parse_args()
    for rho in asked.rho:
        for name in asked.stages:
            if rho in STAGES[name]["rhos"]:
                record(name, run(name, rho, asked.work))


def run(name: str, rho: float, work: Path) -> dict[str, Any]:
    """Run the cells of a stage at one share; finished ones are read."""
    stage = STAGES[name]
    source = {"data": str(DATA), "images": stage["images"], "size": PIXELS}
    masks = {key: stage[key] for key in ("granularity", "gamma", "min_depth") if key in stage}
    return compare(source, stage["methods"], [rho], SEEDS, settings=stage["settings"], out=work, **masks)


def record(name: str, found: dict[str, Any]) -> None:
    """Add what was found to the result file."""
    there = OUT if OUT.exists() else PARTIAL
    document = json.loads(there.read_text()) if there.exists() else {"stages": {}}
    document |= {
        "command": "python benchmarks/fairnet/biased_mnist.py",
        "data": f"MNIST at {PIXELS} pixels, colour planted; test: 10,000 digits, colour independent of class",
        "network": "mlp (3 hidden layers of 100 neurons), Adam, weight decay 1e-4, cosine",
        "seeds": list(SEEDS),
        "environment": environment(),
    }
    kept = document["stages"].setdefault(name, {"cells": []})
    kept["settings"] = {key: value for key, value in STAGES[name].items() if key not in ("rhos", "methods")}
    rhos = {cell["parameters"]["source"]["rho"] for cell in found["cells"]}
    kept["cells"] = [cell for cell in kept["cells"] if cell["rho"] not in rhos] + [
        {"rho": p["source"]["rho"], "method": p["method"], "seed": p["seed"]}
        | (cell["result"] if "result" in cell else {"error": cell["error"]})
        for cell in found["cells"]
        for p in [cell["parameters"]]
    ]
    kept["summary"] = kept.get("summary", {}) | {f"rho_{100 * float(rho):.0f}": methods for rho, methods in found["summary"].items()}
    complete = all("rho_97" in document["stages"].get(stage, {}).get("summary", {}) for stage in QUOTED)
    write_json(OUT if complete else PARTIAL, plain(document))
    if complete:
        PARTIAL.unlink(missing_ok=True)
    for rho, methods in found["summary"].items():
        for method, row in methods.items():
            u, c = row["unbiased"], row["conflicting"]
            gain = "" if u["difference"] is None else f" {100 * u['difference']:+.1f} [{100 * u['low']:+.1f}, {100 * u['high']:+.1f}]"
            print(f"{name} rho {rho} {method}: unbiased {100 * u['mean']:.1f}{gain}, conflicting {100 * c['mean']:.1f}", flush=True)


if __name__ == "__main__":
    main()
