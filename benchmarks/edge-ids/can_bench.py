"""Throughput, memory, latency, false alarms and detection of the CAN streaming tier; writes benchmarks/results/edge-ids-can-*.json.

uv run python benchmarks/edge-ids/can_bench.py read|detect|memory|benign|attacks|leakage [--data ../shared/data/ids]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from edge_ids.can.compare import compare
from edge_ids.can.detector import StreamingDetector
from edge_ids.can.frames import Frames, concat, make_frames
from edge_ids.can.generate import generate, like
from edge_ids.can.inject import KINDS, Attack, inject
from edge_ids.can.metrics import Evaluation
from edge_ids.can.profile import key_name, keys_of, payloads, train
from edge_ids.can.readers import TraceReader, read_frames
from edge_ids.can.service import warm_up
from edge_ids.can.writers import write_frames
from edge_shared.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
TRACES = {"trace48": "can_crysys_trace48/48.csv", "icsim": "can_icsim/sample-can.log"}


def record(name: str, values: dict[str, Any]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    document = {"command": " ".join(["benchmarks/edge-ids/can_bench.py", *sys.argv[1:]]), "machine": machine} | values
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"edge-ids-can-{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


def read(data: Path) -> None:
    """Frames per second of CPU time, reading candump -L; python-can on the same lines beside it."""
    import can

    frames, _ = generate(1800, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = write_frames(frames, Path(folder) / "x.log")
        list(TraceReader(path))  # compiles, and warms the page cache
        ours = min(_cpu(lambda: [None for _ in TraceReader(path)]) for _ in range(3))
        short = write_frames(frames.take(slice(0, 200_000)), Path(folder) / "y.log")

        def peer() -> None:
            with can.LogReader(short) as reader:
                for _ in reader:
                    pass

        theirs = _cpu(peer)
    record(
        "read", {"frames": len(frames), "frames_per_cpu_second": len(frames) / ours, "python_can_frames_per_cpu_second": 200_000 / theirs}
    )


def _cpu(function: Any) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def detect(data: Path) -> None:
    """Batch and frame-by-frame speed, and the latency of one call."""
    frames, _ = generate(600, seed=0)
    profile = train(frames.take(slice(0, len(frames) // 2)))
    warm_up(profile)
    rest = frames.take(slice(len(frames) // 2, None))
    batch = min(_cpu(lambda: StreamingDetector(profile).process(rest)) for _ in range(3))
    detector = StreamingDetector(profile)
    columns = [column.tolist() for column in (rest.time_us, keys_of(rest, profile.channels), rest.length, payloads(rest))]
    latency = np.empty(len(rest))
    begin = time.process_time()
    for index, (t, key, length, payload) in enumerate(zip(*columns, strict=True)):
        start = time.perf_counter()
        detector.feed(t, key, 0, length, payload)
        latency[index] = time.perf_counter() - start
    single = time.process_time() - begin
    p50, p99, p999 = (np.quantile(latency, [0.5, 0.99, 0.999]) * 1e6).tolist()
    record(
        "detect",
        {
            "frames": len(rest),
            "batch_frames_per_cpu_second": len(rest) / batch,
            "single_frames_per_cpu_second": len(rest) / single,
            "latency_us": {"p50": p50, "p99": p99, "p999": p999},
        },
    )


def memory(data: Path) -> None:
    """Peak resident memory while 10^7 frames with 5*10^4 distinct IDs pass in chunks."""
    frames, _ = generate(60, seed=0)
    detector = StreamingDetector(train(frames))
    warm_up(detector.profile)
    rng = np.random.default_rng(0)
    ids = rng.permutation(1 << 20)[:50_000]
    n, chunk = 10_000_000, 100_000
    size = sum(array.nbytes for array in detector.state)
    peaks = []
    for start in range(0, n, chunk):
        part = make_frames(
            (start + np.arange(chunk)) * 250, rng.choice(ids, chunk), rng.integers(0, 256, (chunk, 8), dtype=np.uint8), flags=1
        )
        detector.process(part)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    record(
        "memory",
        {
            "frames": n,
            "distinct_ids": 50_000,
            "state_bytes_before": size,
            "state_bytes_after": sum(array.nbytes for array in detector.state),
            "peak_rss_kib_after_10_percent": peaks[9],
            "peak_rss_kib_at_end": peaks[-1],
        },
    )


def benign(data: Path) -> None:
    """False alarms: the rest of real benign traces, and three hours of generated traffic."""
    real = []
    for name, file in TRACES.items():
        frames, _ = read_frames(data / file)
        for share in (0.25, 0.5, 0.75):
            cut = int(share * len(frames))
            scores = StreamingDetector(train(frames.take(slice(0, cut)))).process(frames.take(slice(cut, None)))
            kinds = Counter("anomaly" if found.anomaly else "alert" for found in scores.detections)
            real.append({"trace": name, "train_share": share, "alerts": kinds["alert"], "anomalies": kinds["anomaly"]})
    generated = []
    template, _ = read_frames(data / TRACES["trace48"])
    for name, vehicle, seed in (("default vehicle", None, 3), ("like trace 48", like(template), 3)):
        frames, _ = generate(1800 + 10_800, vehicle, seed=seed)
        cut = int(np.searchsorted(frames.time_us, frames.time_us[0] + 1_800_000_000))
        scores = StreamingDetector(train(frames.take(slice(0, cut)))).process(frames.take(slice(cut, None)))
        alerts = [f"{key_name(found.key)} {found.detector}" for found in scores.detections if not found.anomaly]
        generated.append({"traffic": name, "seed": seed, "train_s": 1800, "hours": 3, "alerts": alerts, "alerts_per_hour": len(alerts) / 3})
    record("benign", {"real": real, "generated": generated})


def attacks(data: Path) -> None:
    """Event recall per attack and detector: every ID of the background attacked for a quarter of it."""
    results = []
    for name in ("trace48", "generated"):
        frames = read_frames(data / TRACES["trace48"])[0] if name == "trace48" else generate(1800 + 60, seed=3)[0]
        cut = len(frames) // 2 if name == "trace48" else int(np.searchsorted(frames.time_us, frames.time_us[0] + 1_800_000_000))
        profile, background = train(frames.take(slice(0, cut))), frames.take(slice(cut, None))
        for kind in KINDS:
            results.append({"background": name} | _attack(profile, background, kind))
    record("attacks", {"seed": 1, "results": results})


def _attack(profile: Any, background: Frames, kind: str) -> dict[str, Any]:
    found, hints, events, false_alarms, delays = Counter[str](), Counter[str](), [], 0, []
    targets = [None] if kind in ("fuzzing", "dos") else np.unique(background.id).tolist()
    for target in targets:
        try:
            injection = inject(background, Attack(kind, background.seconds * 0.3, background.seconds * 0.55, target), seed=1)
        except InputError:
            continue  # the ID is not there then, or has no byte that moves
        if kind.startswith("masquerade") and not (injection.frames.data != background.data).any():
            continue  # a payload that never moves cannot be frozen or replayed: nothing was changed
        origin = int(background.time_us[0])
        planned = [(kind, *[origin + round(t * 1e6) for t in injection.interval])] if kind == "suspension" else None
        evaluation = Evaluation(planned)
        evaluation.add(injection.frames, StreamingDetector(profile).process(injection.frames))
        result = evaluation.result()
        events.append(result["event_recall"] or 0.0)
        false_alarms += result["false_alarms"]
        if result["median_seconds_to_alarm"] is not None:
            delays.append(result["median_seconds_to_alarm"])
        found.update(result["event_recall_by_detector"])
        hints.update(result["anomaly_recall_by_detector"])
    n = len(events)
    return {
        "attack": kind,
        "runs": n,
        "event_recall": float(np.mean(events)) if n else None,
        "median_seconds_to_alarm": float(np.median(delays)) if delays else None,
        "false_alarms": false_alarms,
        "recall_by_detector": {name: count / n for name, count in found.items()},
        "anomaly_recall_by_detector": {name: count / n for name, count in hints.items()},
    }


def leakage(data: Path) -> None:
    """The study's random split against held-out captures: the same generated data and models."""
    parts = []
    kinds = ("fabrication", "masquerade", "fuzzing", "correlated")
    for number in range(8):
        frames, _ = generate(20, seed=40 + number, name=f"capture{number}")
        kind = kinds[number % 4]
        target = None if kind == "fuzzing" else (0x280, 0x120, 0x110, 0x410)[number % 3]
        parts.append(inject(frames, Attack(kind, 5, 14, target), seed=number).frames)
    frames = concat(parts).sorted()
    results = compare(frames, ["streaming", "random-forest", "lightgbm", "lccde", "lstm", "dcnn", "attention"], ["paper", "time"], epochs=3)
    keep = ("f1", "fnr", "mcc", "pr_auc", "event_recall", "false_alarms_per_hour")
    rows = [{k: r[k] for k in ("model", "protocol", "train_seconds")} | {k: r["metrics"].get(k) for k in keep} for r in results]
    record("leakage", {"seed": 0, "epochs": 3, "frames": len(frames), "captures": 8, "synthetic": True, "results": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["read", "detect", "memory", "benign", "attacks", "leakage"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data" / "ids")
    arguments = parser.parse_args()
    globals()[arguments.what](arguments.data)
