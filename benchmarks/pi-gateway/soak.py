"""Ten million CAN frames and a million flows through one gateway: memory of every process over the run; writes pi-gateway-soak.json.

uv run python benchmarks/pi-gateway/soak.py [--frames 10000000] [--flows 1000000]

The gateway is the command as a user runs it, in a process of its own; this program makes the traffic before, and then only reads
``/api/status`` ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

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

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
TENTHS = 10


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
            part = replace(part, time_us=part.time_us + span * (count // len(base)))
            file.write(write_frames(part, Path(folder) / "part.log").read_bytes())
            count += len(part)
    return count


def flows(path: Path, rows: int) -> None:
    """Write a NetFlow table of synthetic flows."""
    table = hard_cases(5000, 40)
    if rows > len(table):
        table = replicate(table, rows)
    columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(NF_V2)}
    labels = {} if table.label is None else {"Label": table.label, "Attack": table.attack}
    pl.DataFrame(columns | labels).write_csv(path)


def watch(command: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the gateway; returns its summary, and items and memory of every process ten times a second."""
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:
        gateway = subprocess.Popen([*command, "--serve", "0", "--json"], stdout=out, stderr=told)
        supervisor, page = psutil.Process(gateway.pid), ""
        while gateway.poll() is None:
            time.sleep(0.1)
            if not page:
                told.seek(0)
                page = "".join(re.findall(r"http://\S+", told.read())[:1])
                continue
            try:
                with urllib.request.urlopen(page + "api/status", timeout=5) as answer:
                    rows = json.load(answer)["sources"]
                own = supervisor.memory_info().rss
            except (OSError, psutil.Error):
                continue  # it is about to end
            samples.append({row["name"]: (row["items"], row["rss_bytes"]) for row in rows} | {"supervisor": (rows[0]["items"], own)})
        told.seek(0)
        assert gateway.returncode == 0, told.read()
        out.seek(0)
        *_, last = out
    return json.loads(last), samples


def memory_over(samples: list[dict[str, Any]], name: str, total: int) -> dict[str, Any]:
    """Highest resident memory in each tenth of a process's own work (of the CAN frames, for the supervisor)."""
    tenths: list[int | None] = [None] * TENTHS
    for sample in samples:
        items, rss = sample[name]
        if rss and items:
            tenth = min(items * TENTHS // total, TENTHS - 1)
            tenths[tenth] = max(tenths[tenth] or 0, rss)
    seen = [value for value in tenths if value is not None]
    return {
        "samples": sum(1 for sample in samples if sample[name][0] and sample[name][1]),
        "highest_bytes_by_tenth": tenths,
        "highest_bytes": max(seen, default=None),
        "last_over_first": seen[-1] / seen[0] if seen else None,
    }


def main(frames: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benign, _ = generate(600, seed=1)
        (folder / "can").mkdir()
        train(benign).save(folder / "can")
        flows(folder / "train.csv", 0)
        flows(folder / "flows.csv", rows)
        assert run(app, ["flow", "train", "--data", str(folder / "train.csv"), "--model", "pca", "--out", str(folder / "flow")]) == 0
        total = long_trace(folder / "long.log", frames)
        command = [
            str(Path(sys.executable).with_name("pi-gateway")), "run", "--can-replay", str(folder / "long.log"), "--can-model", str(folder / "can"),
            "--flow-csv", str(folder / "flows.csv"), "--flow-model", str(folder / "flow"), "--out", str(folder / "run"),
        ]  # fmt: skip
        load = os.getloadavg()[0]
        summary, samples = watch(command)
        state = sum(path.stat().st_size for path in (folder / "run" / "state").iterdir())
    can = summary["sources"][0]["summary"]
    seen = summary["sources"][1]["items"]
    document = {
        "command": " ".join(["benchmarks/pi-gateway/soak.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores (shared), Python {platform.python_version()}",
        "load_average_before": load, "synthetic": True, "seeds": [1, 2],
        "can_frames": can["frames"], "can_frames_in_the_file": total, "can_frames_per_second_of_the_detector": can["frames_per_second"],
        "can_wall_seconds": can["wall_seconds"], "flows": seen, "alerts": summary["alerts"],
        "alerts_by_signature": summary["alerts_by_signature"], "wall_seconds": summary["seconds"], "dropped": can["dropped"],
        "malformed": can["malformed"], "restarts": [source["restarts"] for source in summary["sources"]],
        "samples": len(samples), "state_file_bytes": state,
        "memory": {"can": memory_over(samples, "can", total), "flow": memory_over(samples, "flow", seen), "supervisor": memory_over(samples, "supervisor", total)},
    }  # fmt: skip
    (RESULTS / "pi-gateway-soak.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--flows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    main(arguments.frames, arguments.flows)
