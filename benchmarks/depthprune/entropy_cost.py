"""What counting costs: an evaluation pass with counts against a plain pass of the model as the user has it, in turn.

One pass is 512 images, or all of the digits; the batch sizes are those of an evaluation (`depthprune prune` counts with 256). Both wall-clock and
processor time are kept: on a machine that others use the second shows the work, the first what waiting adds.

Run: python benchmarks/depthprune/entropy_cost.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torchvision
from _record import write
from depthprune.capture import capture
from depthprune.entropy import count
from depthprune.latency import interleaved, median_interval, torch_threads
from depthprune.models import Residual


def main() -> None:
    rows = []
    torch.manual_seed(0)
    cases = (
        ("resnet18", torchvision.models.resnet18(), (3, 64, 64), 64, 512, 11),
        ("mobilenet_v2", torchvision.models.mobilenet_v2(), (3, 64, 64), 64, 512, 11),
        ("residual (digits)", Residual(), (1, 8, 8), 256, 1792, 41),  # all images of the digits, in full batches
    )
    for name, model, shape, batch, images, repeats in cases:
        x = torch.randn(batch, *shape)
        gm = capture(model.eval(), x)
        with torch_threads(1), torch.no_grad():
            used: dict[str, list[float]] = {"plain": [], "counting": []}

            def plain(model=model, x=x, images=images, used=used) -> None:
                start = time.process_time()
                for _ in range(images // len(x)):
                    model(x)
                used["plain"].append(time.process_time() - start)

            def counting(gm=gm, x=x, images=images, used=used) -> None:
                start = time.process_time()
                count(gm, [x] * (images // len(x)))
                used["counting"].append(time.process_time() - start)

            times = interleaved({"plain": plain, "counting": counting}, repeats, warmup=1)
        ratios = np.array(used["counting"][-repeats:]) / np.array(used["plain"][-repeats:])
        wall = dict(zip(("ratio", "low", "high"), median_interval(times["counting"] / times["plain"]), strict=True))
        cpu = dict(zip(("ratio", "low", "high"), median_interval(ratios), strict=True))
        rows.append(
            {
                "model": name, "shape": list(x.shape), "images": images, "repeats": repeats, "wall": wall, "processor_time": cpu,
                **{f"{kind}_ms": float(np.median(times[kind])) for kind in ("plain", "counting")},
            }
        )  # fmt: skip
        print(name, wall, cpu, flush=True)
    write("entropy-cost", "python benchmarks/depthprune/entropy_cost.py", rows, threads=1)


if __name__ == "__main__":
    main()
