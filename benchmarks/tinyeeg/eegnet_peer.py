"""EEGNet here against braindecode's: the same weights, the same windows, the same steps of Adam.

Run: uv run --with braindecode python benchmarks/tinyeeg/eegnet_peer.py
Four channels, two seconds at 256 Hz, batches of 64. Both are timed in turns by CPU time.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from edge_shared.files import write_json
from edge_shared.report import environment
from tinyeeg import eegnet
from torch import Tensor, nn

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-eegnet-peer.json"
CHANNELS, SAMPLES, CLASSES, KERNEL, BATCH, REPEATS = 4, 512, 3, 128, 64, 15


def with_weights_of(theirs: nn.Module) -> nn.Sequential:
    """Our network with the weights of braindecode's."""
    ours, given = eegnet.network(CHANNELS, SAMPLES, CLASSES, kernel=KERNEL), theirs.state_dict()
    state = {key: value for key, value in given.items() if key in ours.state_dict()}
    state["conv_spatial.weight"] = theirs.conv_spatial.weight
    final = [value for key, value in given.items() if key.startswith("final_layer")]
    state["classifier.weight"] = next(value for value in final if value.ndim == 2)
    state["classifier.bias"] = next(value for value in final if value.ndim == 1)
    ours.load_state_dict(state)
    return ours


def step_of(network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], Any]:
    """One step of Adam."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def step() -> None:
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turns(works: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Median CPU milliseconds of each, and the ratio of the peer's to ours with its range."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 2):
        for name, work in works.items():
            began = time.process_time()
            work()
            if repeat > 1:
                times[name].append(1000 * (time.process_time() - began))
    ratios = np.array(times["braindecode"]) / np.array(times["tinyeeg"])
    return {
        "milliseconds": {name: median(values) for name, values in times.items()},
        "times_faster": {"median": float(np.median(ratios)), "low": float(np.quantile(ratios, 0.025)), "high": float(np.quantile(ratios, 0.975))},
    }  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    from braindecode.models import EEGNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs = EEGNet(n_chans=CHANNELS, n_outputs=CLASSES, n_times=SAMPLES, kernel_length=KERNEL, final_layer_with_constraint=True).eval()
    ours = with_weights_of(theirs).eval()
    x, labels = torch.randn(BATCH, CHANNELS, SAMPLES), torch.arange(BATCH) % CLASSES
    inside: dict[str, Tensor] = {}
    handle = theirs.drop_2.register_forward_hook(lambda module, inputs, output: inside.update(theirs=output))
    with torch.inference_mode():
        theirs(x)
        difference = float((ours[:-2](x[:, None]) - inside["theirs"]).abs().max())
    handle.remove()

    def forward(network: nn.Module, windows: Tensor) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: network(windows))

    inference = in_turns({"tinyeeg": forward(ours, x[:, None]), "braindecode": forward(theirs, x)})
    training = in_turns({"tinyeeg": step_of(ours.train(), x[:, None], labels), "braindecode": step_of(theirs.train(), x, labels)})
    document = {
        "command": "uv run --with braindecode python benchmarks/tinyeeg/eegnet_peer.py", "environment": environment(), "threads": 1,
        "channels": CHANNELS, "samples": SAMPLES, "batch": BATCH, "repeats": REPEATS,
        "parameters": {"tinyeeg": sum(p.numel() for p in ours.parameters()), "braindecode": sum(p.numel() for p in theirs.parameters())},
        "largest_difference_before_the_classifier": difference, "inference": inference, "training_step": training,
    }  # fmt: skip
    write_json(OUT, document)
    print({key: value for key, value in document.items() if key != "environment"})


if __name__ == "__main__":
    main()
