"""How fast a trained detector is on this machine, on SYNTHETIC flows of its own value range."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edge_ids.flow.detector import Detector
from edge_ids.flow.stream import StreamScorer
from edge_ids.flow.table import FlowTable


@dataclass(frozen=True)
class Bench:
    """Measured figures.

    Attributes:
        flows: flows scored.
        hosts: addresses among them.
        batch_flows_per_second: whole-file scoring, with scaling and aggregation.
        stream_flows_per_second: windows through the horizon.
        window_ms_median: time from a full window to its scores.
        window_ms_p99: likewise, 99th percentile.
    """

    flows: int
    hosts: int
    batch_flows_per_second: float
    stream_flows_per_second: float
    window_ms_median: float
    window_ms_p99: float


def bench(detector: Detector, flows: int = 20_000, hosts: int = 50, seed: int = 0) -> Bench:
    """Score `flows` random flows among `hosts` addresses, whole and as a stream, after a warm-up.

    The number of hosts matters: the fewer pairs of hosts a window holds, the less GraphIDS has to compute.
    """
    random = np.random.default_rng(seed)
    scaler = detector.scaler
    values = scaler.low + random.random((flows, len(detector.schema))) * (scaler.high - scaler.low)
    if scaler.kind == "log1p":
        values = np.sign(values) * np.expm1(np.abs(values))
    names = np.array([f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(hosts)])
    src, dst = random.integers(0, hosts, (2, flows)).astype(np.int32)
    table = FlowTable(detector.schema, detector.extractor, names, src, dst, values)
    detector.score_table(table.rows(slice(0, 2 * detector.window)))
    began = time.perf_counter()
    detector.score_table(table)
    batch = time.perf_counter() - began
    scorer = StreamScorer(detector)
    times = []
    for start in range(0, flows, detector.window):
        began = time.perf_counter()
        list(scorer.feed(table.rows(slice(start, start + detector.window))))
        times.append(time.perf_counter() - began)
    list(scorer.flush())
    median, late = np.quantile(times, (0.5, 0.99)) * 1000
    return Bench(flows, hosts, flows / batch, flows / sum(times), float(median), float(late))
