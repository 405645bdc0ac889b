"""MACs of whole networks by our trace beside torch's FlopCounterMode and, where it is installed, fvcore: the figures and the CPU time of each.

    python benchmarks/shared/flops_peers.py          (with fvcore: uv run --with fvcore python benchmarks/shared/flops_peers.py)

torch counts one multiply-accumulate as two FLOPs and only what it dispatches; fvcore counts one as one, and adds norms and pooling unless told
not to (told here). Repeats of the three are interleaved. Writes benchmarks/results/shared-flops-peers.json.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from edge_shared import flops
from edge_shared.files import write_json
from edge_shared.report import environment
from edge_shared.trace import trace
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (torchvision.models.resnet18, 224),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 224),
    "swin_t": (torchvision.models.swin_t, 224),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), 224),
}
REPEATS = 5


def ours(model: nn.Module, x: torch.Tensor) -> int:
    return flops.macs(trace(model, x))


def torchs(model: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def fvcores(model: nn.Module, x: torch.Tensor) -> int:
    from fvcore.nn import FlopCountAnalysis

    found = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(sum(count for name, count in found.by_operator().items() if name in ("conv", "linear", "matmul", "bmm", "einsum")))


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    counters = {"edgewise": ours, "torch": torchs} | ({"fvcore": fvcores} if find_spec("fvcore") else {})
    rows: dict[str, Any] = {}
    for name, (make, side) in MODELS.items():
        model, x = make().eval(), torch.zeros(1, 3, side, side)
        seconds: dict[str, list[float]] = {counter: [] for counter in counters}
        macs: dict[str, int] = {}
        for _ in range(REPEATS):
            for counter, count in counters.items():
                start = time.process_time()
                macs[counter] = count(model, x)
                seconds[counter].append(time.process_time() - start)
        rows[name] = {counter: {"macs": macs[counter], "cpu_seconds": sorted(seconds[counter])[REPEATS // 2]} for counter in counters}
        print(name, rows[name], flush=True)
    write_json(
        RESULTS / "shared-flops-peers.json",
        {"command": "uv run --with fvcore python benchmarks/shared/flops_peers.py", "environment": environment(), "input": "1x3x224x224"}
        | {"repeats": REPEATS, "models": rows},
    )


if __name__ == "__main__":
    main()
