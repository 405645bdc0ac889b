"""Ten million CAN frames and a stream of flows through one gateway: memory of every process over the run; writes pi-gateway-soak.json.

uv run python benchmarks/pi-gateway/soak.py [--frames 10000000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from edge_ids.can.frames import Frames
from edge_ids.can.generate import generate
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import train
from edge_ids.can.writers import write_frames
from edge_ids.cli import app
from edge_ids.flow.schema import NF_V2
from edge_ids.flow.synthetic import hard_cases, replicate
from edge_shared.cli import run
from pi_gateway.gateway import run_gateway
from pi_gateway.source import Source
from pi_gateway.supervisor import Supervisor

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")


def long_trace(path: Path, frames: int) -> int:
    """Write a candump log of at least so many frames: ten attacked minutes again and again, time going on."""
    base, _ = generate(600, seed=2)
    base = inject(base, Attack("fuzzing", 100, 110), seed=1).frames
    base = inject(base, Attack("fabrication", 300, 310, 0x280), seed=2).frames
    span = int(base.time_us[-1] - base.time_us[0]) + 1000
    count = 0
    with path.open("wb") as file, tempfile.TemporaryDirectory() as folder:
        while count < frames:
            part: Frames = base.take(slice(0, min(len(base), frames - count)))
            file.write(write_frames(_shifted(part, span * (count // len(base))), Path(folder) / "part.log").read_bytes())
            count += len(part)
    return count


def _shifted(frames: Frames, by_us: int) -> Frames:
    from dataclasses import replace

    return replace(frames, time_us=frames.time_us + by_us)


def flows(path: Path, rows: int) -> None:
    """Write a NetFlow table of synthetic flows."""
    table = hard_cases(5000, 40)
    if rows > len(table):
        table = replicate(table, rows)
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(NF_V2)}
    labels = {} if table.label is None else {"Label": table.label, "Attack": table.attack}
    pl.DataFrame(columns | labels).write_csv(path)


def main(frames: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benign, _ = generate(600, seed=1)
        (folder / "can").mkdir()
        train(benign).save(folder / "can")
        flows(folder / "train.csv", 0)
        flows(folder / "flows.csv", 300_000)
        assert run(app, ["flow", "train", "--data", str(folder / "train.csv"), "--model", "pca", "--out", str(folder / "flow")]) == 0
        total = long_trace(folder / "long.log", frames)
        samples: list[dict[str, Any]] = []
        sources = [
            Source("can", "can-replay", str(folder / "long.log"), folder / "can"),
            Source("flow", "flow-file", str(folder / "flows.csv"), folder / "flow"),
        ]

        def watch(supervisor: Supervisor, _: Any) -> None:
            def sample() -> None:
                own = psutil.Process()
                while not supervisor._stopping.is_set():
                    rows = supervisor.status()["sources"]
                    memory = {row["name"]: row["rss_bytes"] for row in rows} | {"supervisor": own.memory_info().rss}
                    samples.append({"can_frames": rows[0]["items"], "flows": rows[1]["items"], "rss_bytes": memory})
                    time.sleep(0.25)

            threading.Thread(target=sample, daemon=True).start()

        summary = run_gateway(sources, folder / "run", ready=watch)
        state = sum(path.stat().st_size for path in (folder / "run" / "state").iterdir())
    can = summary["sources"][0]["summary"]
    reached = np.array([sample["can_frames"] for sample in samples])
    memory: dict[str, Any] = {}
    for process in ("can", "flow", "supervisor"):
        rss = np.array([sample["rss_bytes"][process] for sample in samples])
        alive = rss > 0
        half = alive & (reached >= total / 2)
        memory[process] = {
            "highest_bytes": int(rss.max()),
            "at_10_percent_bytes": _near(rss, alive, reached, 0.1 * total),
            "at_50_percent_bytes": _near(rss, alive, reached, 0.5 * total),
            "highest_in_second_half_bytes": int(rss[half].max()) if half.any() else None,
        }
    document = {
        "command": " ".join(["benchmarks/pi-gateway/soak.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores (shared), Python {platform.python_version()}",
        "synthetic": True, "seeds": [1, 2],
        "can_frames": can["frames"], "flows": summary["sources"][1]["items"], "alerts": summary["alerts"],
        "alerts_by_signature": summary["alerts_by_signature"], "wall_seconds": summary["seconds"], "dropped": can["dropped"],
        "malformed": can["malformed"], "restarts": [source["restarts"] for source in summary["sources"]],
        "samples": len(samples), "state_file_bytes": state, "memory": memory,
    }  # fmt: skip
    (RESULTS / "pi-gateway-soak.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


def _near(rss: Any, alive: Any, reached: Any, frames: float) -> int | None:
    rows = np.flatnonzero(alive & (reached >= frames))
    return int(rss[rows[0]]) if len(rows) else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000_000)
    main(parser.parse_args().frames)
