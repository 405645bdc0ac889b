"""What counting costs: an evaluation pass with counts against a plain pass of the model as the user has it, in turn.

One pass is two batches; the batch sizes are those of an evaluation (`depthprune prune` counts with 256).

Run: python benchmarks/depthprune/entropy_cost.py
"""

from __future__ import annotations

from dataclasses import asdict

import torch
import torchvision
from _record import write
from depthprune.capture import capture
from depthprune.entropy import count
from depthprune.latency import compare, torch_threads
from depthprune.models import Residual


def main() -> None:
    rows = []
    torch.manual_seed(0)
    cases = (
        ("resnet18", torchvision.models.resnet18(), (3, 64, 64), 64),
        ("mobilenet_v2", torchvision.models.mobilenet_v2(), (3, 64, 64), 64),
        ("residual (digits)", Residual(), (1, 8, 8), 256),
    )
    for name, model, shape, batch in cases:
        x = torch.randn(batch, *shape)
        gm = capture(model.eval(), x)
        with torch_threads(1), torch.no_grad():
            result = compare(lambda model=model, x=x: [model(x) for _ in range(2)], lambda gm=gm, x=x: count(gm, [x] * 2), 15)
        rows.append({"model": name, "shape": list(x.shape), **asdict(result)})
        print(name, result.ratio, flush=True)
    write("entropy-cost", "python benchmarks/depthprune/entropy_cost.py", rows, threads=1)


if __name__ == "__main__":
    main()
