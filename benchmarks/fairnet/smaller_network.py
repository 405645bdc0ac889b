"""What a channel mask of FFW saves once it is a smaller network: equal logits, latency side by side, parameters and MACs.

A small convolutional network is trained on Biased-MNIST (3,000 digits of 14 pixels, rho 0.9, 6 epochs), FFW learns its channel mask on
1,000 balanced digits, the mask becomes a smaller network. Latency is the median of interleaved runs at 28 pixels, batch 1 and 32, one
thread; the masked network of full size is the one that the mask alone would leave.

Run: python benchmarks/fairnet/smaller_network.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from edge_shared import flops
from edge_shared.files import write_json
from edge_shared.report import environment
from edge_shared.trace import trace
from fairnet.data import biased_images
from fairnet.gates import GatedNetwork
from fairnet.methods._train import Settings, tensors
from fairnet.methods.ffw import FfwConfig, operate
from fairnet.networks import extract, gate_sites
from fairnet.score import score

DATA = Path(os.environ.get("EDGEWISE_DATA") or Path(__file__).parents[3] / "shared" / "data") / "vision" / "mnist.npz"
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "fairnet-smaller-network.json"
ROUNDS = 300


def main() -> None:
    torch.set_num_threads(1)
    data = biased_images(str(DATA), rho=0.9, train=3000, val=300, balanced=1000, seed=0, size=14)
    settings = Settings(epochs=6)
    model, operation = operate(data, settings, None, FfwConfig(epochs=40))
    before, _ = score(model, data)
    smaller = extract(model, operation.masks)
    after, _ = score(smaller, data)
    images = tensors(data.test, data)[0][:2000]
    gated = GatedNetwork(model, "channels", [(site, site.gate_shape) for site in gate_sites(model)])
    gated.load_masks(operation.masks)
    gated.set(hard=True)
    with torch.no_grad():
        difference = float((model(images) - smaller(images)).abs().max())
        largest = float(model(images).abs().max())
    gated.close()
    rows = [latency(model, smaller, batch) for batch in (1, 32)]
    networks = {"full": model, "smaller": smaller}
    document = {
        "command": "python benchmarks/fairnet/smaller_network.py",
        "environment": environment(),
        "seed": 0,
        "channels": {"full": [site.gate_shape[0] for site in gate_sites(model)], "kept": [int(mask.sum()) for mask in operation.masks]},
        "logits_max_abs_difference": difference,
        "logits_max_abs": largest,
        "parameters": {name: sum(p.numel() for p in one.parameters()) for name, one in networks.items()},
        "macs_28_pixels": {name: flops.macs(trace(one, torch.zeros(1, 3, 28, 28))) for name, one in networks.items()},
        "latency": rows,
        "before": before,
        "after": after,
    }
    write_json(OUT, document)
    print(difference, rows, before, after)


@torch.no_grad()
def latency(full: torch.nn.Module, smaller: torch.nn.Module, batch: int) -> dict[str, float]:
    """Medians in ms of interleaved runs, and the median and quartiles of the pairwise ratio smaller / full."""
    x = torch.randn(batch, 3, 28, 28)
    times = np.zeros((ROUNDS + 20, 2))
    for turn in range(len(times)):
        for index, model in enumerate((full, smaller)):
            start = time.perf_counter()
            model(x)
            times[turn, index] = (time.perf_counter() - start) * 1000
    times = times[20:]
    low, middle, high = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.5, 0.75])
    full_ms, smaller_ms = np.median(times, axis=0)
    return {"batch": batch, "full_ms": full_ms, "smaller_ms": smaller_ms, "ratio": middle, "ratio_quartiles": [low, high]}


if __name__ == "__main__":
    main()
