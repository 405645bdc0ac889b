"""Watch a stream of flows: alerts with their reasons, one per pair of hosts and cool-down; metrics; drift; resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import atomic_path

from edge_ids.alerts import Alert, Metrics
from edge_ids.flow.detector import Detector
from edge_ids.flow.drift import DriftMonitor
from edge_ids.flow.explain import explain
from edge_ids.flow.stream import ScoredWindow, StreamScorer
from edge_ids.flow.table import FlowTable

FLOW_SIGNATURE, DRIFT_SIGNATURE = 2001, 2002
PAIRS = 65_536
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "IPv6-ICMP", 132: "SCTP"}


@dataclass
class Summary:
    """What a run saw.

    Attributes:
        flows: flows read.
        scored: flows scored.
        flagged: flows above the threshold.
        alerts: alerts written; flows of one pair within a cool-down are one alert.
        suppressed: flagged flows that a cool-down or their window's alert covers.
        windows: windows scored.
        drifted_blocks: blocks of 4,096 flows that do not look like the calibration traffic.
        seconds: time in scaling, scoring and alerting; reading excluded.
    """

    flows: int = 0
    scored: int = 0
    flagged: int = 0
    alerts: int = 0
    suppressed: int = 0
    windows: int = 0
    drifted_blocks: int = 0
    seconds: float = 0.0
    flows_per_second: float | None = None


class FlowMonitor:
    """Turn flows into alerts; everything it keeps is bounded.

    Args:
        detector: a trained detector.
        cooldown: seconds of flow time in which a pair of hosts raises one alert. Where flows have no times, a pair stays
            quiet for as many flows as the horizon holds.
        threshold: replaces the detector's own stream threshold.
        metrics: gets counters and gauges, see `declare`.
    """

    def __init__(self, detector: Detector, cooldown: float = 60.0, threshold: float | None = None, metrics: Metrics | None = None) -> None:
        if threshold is None and detector.stream_threshold is None:
            raise InputError("the model holds no threshold; train it again or give --threshold-value")
        self.detector = detector
        self.threshold = detector.stream_threshold.value if threshold is None and detector.stream_threshold else float(threshold or 0)
        self.summary = Summary()
        self._cooldown = cooldown
        self._scorer = StreamScorer(detector)
        self._drift = DriftMonitor(detector)
        self._frozen = False
        self._quiet: OrderedDict[str, float] = OrderedDict()
        self._metrics = metrics
        if metrics is not None:
            declare(metrics)

    def feed(self, table: FlowTable) -> Iterator[Alert]:
        """Take flows in; yields alerts as windows complete."""
        self.summary.flows += len(table)
        yield from self._watch(self._scorer.feed(table))

    def tick(self, now: float) -> Iterator[Alert]:
        """Score what has waited too long at the time `now`; for live input."""
        yield from self._watch(self._scorer.tick(now))

    def flush(self) -> Iterator[Alert]:
        """Score what waits, at the end of the input."""
        yield from self._watch(self._scorer.flush())

    def _watch(self, windows: Iterable[ScoredWindow]) -> Iterator[Alert]:
        windows = iter(windows)
        while True:
            began = time.perf_counter()
            window = next(windows, None)
            alerts = [] if window is None else list(self._alerts(window))
            self.summary.seconds += time.perf_counter() - began
            if self.summary.seconds:
                self.summary.flows_per_second = self.summary.scored / self.summary.seconds
            if window is None:
                return
            self._count(len(alerts))
            yield from alerts

    def _alerts(self, window: ScoredWindow) -> Iterator[Alert]:
        summary = self.summary
        flagged = np.flatnonzero(window.scores > self.threshold)
        times = window.table.start if window.table.end is None else window.table.end
        pair = window.src[flagged] * len(window.names) + window.dst[flagged]
        # One alert per pair and window: its highest flow, and how many there were.
        order = np.lexsort((flagged, -window.scores[flagged], pair))
        _, first, counts = np.unique(pair[order], return_index=True, return_counts=True)
        for flow, count in sorted(zip(flagged[order[first]].tolist(), counts.tolist(), strict=True)):
            now = float(times[flow]) if times is not None else float(summary.scored + flow)
            limit = self._cooldown if times is not None else float(self.detector.horizon.flows)
            source, target = window.names[window.src[flow]], window.names[window.dst[flow]]
            key = f"{source} {target}"
            until = self._quiet.get(key)
            if until is not None and now < until:
                summary.suppressed += count
                continue
            self._quiet[key] = now + limit
            self._quiet.move_to_end(key)
            if len(self._quiet) > PAIRS:
                self._quiet.popitem(last=False)
            summary.suppressed += count - 1
            summary.alerts += 1
            yield self._alert(window, flow, count, source, target, None if times is None else now)
        summary.scored += len(window.scores)
        summary.flagged += len(flagged)
        summary.windows += 1
        drift = self._drift.update(window.scores, window.x)
        summary.drifted_blocks = self._drift.drifted_blocks
        if drift is not None and drift.drifted != self._frozen:
            self._frozen = drift.drifted
            if drift.drifted:
                words = "traffic does not look like the calibration traffic; scores are less reliable, the model stays frozen"
                when = float(times[-1]) if times is not None else time.time()
                yield Alert(when, DRIFT_SIGNATURE, words, "drift", 3, {}, asdict(drift), "anomaly")

    def _alert(self, window: ScoredWindow, flow: int, count: int, source: str, target: str, now: float | None) -> Alert:
        raw = dict(zip(self.detector.schema.features, window.table.features[flow].tolist(), strict=True))
        protocol = int(raw.get("PROTOCOL", 0))
        ports = [raw.get(name, raw.get(name.removeprefix("L4_"))) for name in ("L4_SRC_PORT", "L4_DST_PORT")]
        key = json.dumps([source, target, ports, protocol]).encode()
        fields = {
            "flow_id": int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "big"),
            "src_ip": source, "src_port": None if ports[0] is None else int(ports[0]),
            "dest_ip": target, "dest_port": None if ports[1] is None else int(ports[1]),
            "proto": _PROTOCOLS.get(protocol, str(protocol)),
        }  # fmt: skip
        details = {
            "model": self.detector.kind, "score": float(window.scores[flow]), "threshold": self.threshold, "flows": count,
            "explanation": explain(self.detector, window, flow),
        }  # fmt: skip
        when = time.time() if now is None else now
        return Alert(when, FLOW_SIGNATURE, "flow unlike benign traffic", "network-anomaly", 2, fields, details)

    def _count(self, alerts: int) -> None:
        if self._metrics is None:
            return
        for name in ("flows", "flagged", "alerts", "suppressed", "drifted_blocks"):
            self._metrics.set(f"flow_{name}_total", getattr(self.summary, name))
        self._metrics.set("flow_horizon_flows", len(self._scorer.horizon))
        self._metrics.set("flow_horizon_hosts", self._scorer.horizon.hosts)
        self._metrics.set("flow_pending", self._scorer.pending)
        if self._drift.last is not None:
            self._metrics.set("flow_score_psi", self._drift.last.psi)

    def save(self, path: Path, alert_bytes: int) -> None:
        """Write the state atomically (npz, no pickle); `alert_bytes` is how much of the alert file belongs to it."""
        notes = {
            "summary": asdict(self.summary), "drift": self._drift.state(), "frozen": self._frozen, "quiet": list(self._quiet.items()),
            "alert_bytes": alert_bytes, "threshold": self.threshold,
        }  # fmt: skip
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, notes=np.array(json.dumps(notes)), **self._scorer.state())

    def restore(self, path: Path) -> int:
        """Go on from a saved state; returns its `alert_bytes`.

        Raises:
            InputError: if it is absent, damaged, or of another kind of model.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                state = {name: data[name] for name in data.files}
            notes = json.loads(str(state.pop("notes")))
            self.summary = Summary(**notes["summary"])
            self.threshold = notes["threshold"]
            self._drift.restore(notes["drift"])
            self._frozen = notes["frozen"]
            self._quiet = OrderedDict((key, until) for key, until in notes["quiet"])
            self._scorer.restore(state)
            return int(notes["alert_bytes"])
        except OSError as error:
            raise InputError(f"cannot read state {path}: {error.strerror or error}") from error
        except Exception as error:  # zip, json and numpy each have their own
            raise InputError(f"{path} is no state of edge-ids flow run with this model, or it is damaged") from error


def declare(metrics: Metrics) -> None:
    """Declare what a monitor reports to Prometheus."""
    metrics.counter("flow_flows_total", "Flows read")
    metrics.counter("flow_flagged_total", "Flows above the threshold")
    metrics.counter("flow_alerts_total", "Alerts written")
    metrics.counter("flow_suppressed_total", "Flagged flows covered by another alert")
    metrics.counter("flow_drifted_blocks_total", "Blocks of 4096 flows unlike the calibration traffic")
    metrics.gauge("flow_horizon_flows", "Flows in the edge horizon")
    metrics.gauge("flow_horizon_hosts", "Hosts in the edge horizon")
    metrics.gauge("flow_pending", "Flows waiting for their window to fill")
    metrics.gauge("flow_score_psi", "Population stability index of the last block of scores")
