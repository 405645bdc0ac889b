"""How cost grows with size: layers, flows, frames and candidate networks in ten-fold steps; CPU seconds, and the slope on log-log axes.

    python benchmarks/shared/growth.py [--quick]

A slope of 1 is linear. Writes benchmarks/results/shared-growth.json and docs/pictures/shared-growth.png.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.architectures import mobile
from edge_shared.files import write_json
from edge_shared.memory import inference
from edge_shared.memory.training import training_bytes
from edge_shared.report import environment, figure

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def cpu_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The least CPU time of a few runs: what the work needs, whatever else the machine does."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def layers(blocks: int) -> tuple[int, float]:
    """Build, deploy and cost a chain of inverted residuals under model D, and predict its training bytes."""
    config = mobile.MobileConfig.model_validate(
        {"resolution": 32, "stem": {"out": 8}, "blocks": [{"kernel": 3, "expand": 4, "out": 8}] * blocks, "classes": 10}
    )
    network = mobile.network(config)

    def work() -> None:
        inference.peak(network, "D")
        training_bytes(network)

    return len(network.layers), cpu_seconds(work)


def candidates(count: int) -> tuple[int, float]:
    """Cost that many networks of the MOOFA V3 space."""
    from moofa.budget import Target
    from moofa.costs import CostTable
    from moofa.presets import PRESETS

    table = CostTable(PRESETS["moofa-v3"](), Target("D", 8))
    rows = table.genes.sample(count, np.random.default_rng(0))
    return count, cpu_seconds(lambda: table.costs(rows))


def frames(count: int) -> tuple[int, float]:
    """Batch detection over that many CAN frames."""
    from edge_ids.can.detector import StreamingDetector
    from edge_ids.can.generate import generate
    from edge_ids.can.profile import train
    from edge_ids.can.service import warm_up

    rate = len(generate(10, seed=0)[0]) / 10
    profile = train(generate(60, seed=0)[0])
    warm_up(profile)
    trace, _ = generate(max(1.0, count / rate), seed=1)
    return len(trace), cpu_seconds(lambda: StreamingDetector(profile).process(trace), 2)


def flows(count: int) -> tuple[int, float]:
    """Score a stream of that many flows with the small autoencoder."""
    from edge_ids.flow.fit import FitConfig, fit
    from edge_ids.flow.stream import StreamScorer
    from edge_ids.flow.synthetic import hard_cases, replicate

    table = hard_cases(3000, 30)
    detector = fit(FitConfig(data="synthetic", model="simpleae", split="random", epochs=2, controls=False), table).detector
    many = replicate(table, count)

    def work() -> None:
        scorer = StreamScorer(detector)
        for start in range(0, count, 16_384):
            for _ in scorer.feed(many.rows(slice(start, start + 16_384))):
                pass
        for _ in scorer.flush():
            pass

    return count, cpu_seconds(work, 2)


SERIES: dict[str, tuple[Callable[[int], tuple[int, float]], list[int], str]] = {
    "layers": (layers, [1, 10, 100, 1000], "peak and training bytes of one network"),
    "candidates": (candidates, [1_000, 10_000, 100_000, 1_000_000], "networks of moofa-v3 costed"),
    "frames": (frames, [10_000, 100_000, 1_000_000], "CAN frames through the streaming tier"),
    "flows": (flows, [10_000, 100_000, 1_000_000], "flows through the horizon and SimpleAE"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the largest size of each series; writes nothing")
    quick = parser.parse_args().quick
    record: dict[str, Any] = {"command": "python benchmarks/shared/growth.py", "environment": environment(), "series": {}}
    for name, (measure, sizes, what) in SERIES.items():
        points = [measure(size) for size in (sizes[:-1] if quick else sizes)]
        x, y = np.log10(np.array(points)).T
        # The last two sizes: below them, what every call costs hides the growth.
        slope = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
        record["series"][name] = {"what": what, "points": [{"size": s, "cpu_seconds": t} for s, t in points], "slope": slope}
        print(f"{name}: slope {slope:.2f}; " + ", ".join(f"{s:,}: {t:.3g} s" for s, t in points), flush=True)
    if quick:
        return
    write_json(RESULTS / "shared-growth.json", record)
    with figure(PICTURES, "shared-growth") as axes:
        for name, series in record["series"].items():
            axes.loglog(
                [p["size"] for p in series["points"]],
                [p["cpu_seconds"] for p in series["points"]],
                "o-",
                label=f"{name} (slope {series['slope']:.2f})",
            )
        axes.set_xlabel("size")
        axes.set_ylabel("CPU seconds")
        axes.legend()


if __name__ == "__main__":
    main()
