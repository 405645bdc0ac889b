"""Metrics that a driver would ask for: false alarms per hour, event recall, time to the first alarm; and the usual ones.

An *event* is a run of attack frames of one class without a pause of more than three seconds. It is found if one of its frames
is flagged, or an alert falls between its start and one second after its end. An alert outside of all events (and the two
seconds after them, while sums run down) is a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_ids.can.detector import Detection, Scores
from edge_ids.can.engine import DETECTORS, HINT
from edge_ids.can.frames import Array, Frames

EVENT_GAP_US = 3_000_000
GRACE_US = 1_000_000
AFTER_US = 2_000_000
BINS = 2001  # ratios are whole thousandths, from 0 to 2


@dataclass
class Event:
    """One attack: class, first and last frame time (us), when it was noticed, and by which detectors."""

    kind: str
    start_us: int
    end_us: int
    first_alarm_us: int | None = None
    detectors: set[str] = field(default_factory=set)
    hints: set[str] = field(default_factory=set)


def binary_metrics(tp: int, fp: int, fn: int, tn: int) -> dict[str, float | None]:
    """Precision, recall, F1, FNR, FPR and Matthews' correlation of a confusion; None where undefined."""
    scale = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    return {
        "precision": tp / (tp + fp) if tp + fp else None,
        "recall": tp / (tp + fn) if tp + fn else None,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "fnr": fn / (tp + fn) if tp + fn else None,
        "fpr": fp / (fp + tn) if fp + tn else None,
        "mcc": (float(tp) * tn - float(fp) * fn) / scale**0.5 if scale else None,
    }


def average_precision(benign_B: Array, attack_B: Array) -> float | None:
    """Area under precision-recall (step sum, as scikit-learn) from counts per ascending score bin."""
    positives, seen = attack_B[::-1].cumsum(), (attack_B + benign_B)[::-1].cumsum()
    if not positives[-1]:
        return None
    precision = np.divide(positives, seen, out=np.zeros(len(seen)), where=seen > 0)
    return float((precision * np.diff(positives, prepend=0)).sum() / positives[-1])


class Evaluation:
    """Collect metrics over chunks in constant memory per frame (it grows with the events and alerts only).

    Args:
        planned: attack intervals that leave no frame to label (suspension): class, start and end in us.
    """

    def __init__(self, planned: list[tuple[str, int, int]] | None = None):
        self.events: list[Event] = [Event(kind, start, end) for kind, start, end in planned or []]
        self._planned = len(self.events)
        self._open: dict[str, Event] = {}
        self._alerts: list[Detection] = []
        self._benign_B, self._attack_B = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._per_class: dict[str, list[int]] = {}
        self._confusion = np.zeros(4, np.int64)
        self.seconds = 0.0
        self.frames = 0
        self._last: tuple[int, int] | None = None

    def add(self, frames: Frames, scores: Scores) -> None:
        """Add one labelled chunk."""
        self.frames += len(frames)
        self._alerts += [found for found in scores.detections if not found.anomaly]
        steps = np.diff(frames.time_us, prepend=self._last[0] if self._last else frames.time_us[0])
        self.seconds += float(steps[(steps > 0) & (steps < 60_000_000)].sum()) / 1e6
        self._last = (int(frames.time_us[-1]), 0)
        attack, flagged = frames.attack, scores.ratio_N >= 1
        bins = np.clip(np.rint(scores.ratio_N * 1000), 0, BINS - 1).astype(np.int64)
        self._benign_B += np.bincount(bins[~attack], minlength=BINS)
        self._attack_B += np.bincount(bins[attack], minlength=BINS)
        self._confusion += [
            (attack & flagged).sum(), (~attack & flagged).sum(), (attack & ~flagged).sum(), (~attack & ~flagged).sum(),
        ]  # fmt: skip
        for code in np.unique(frames.label[attack]).tolist():
            self._add_class(frames.classes[code], np.flatnonzero(frames.label == code), frames, scores, flagged)

    def _add_class(self, kind: str, rows: Array, frames: Frames, scores: Scores, flagged: Array) -> None:
        hits = self._per_class.setdefault(kind, [0, 0])
        hits[0] += int(flagged[rows].sum())
        hits[1] += len(rows)
        times = frames.time_us[rows]
        cuts = np.flatnonzero((np.diff(times) > EVENT_GAP_US) | (np.diff(times) < 0)) + 1
        for part in np.split(rows, cuts):
            start, end = int(frames.time_us[part[0]]), int(frames.time_us[part[-1]])
            event = self._open.get(kind)
            if event is None or not 0 <= start - event.end_us <= EVENT_GAP_US:
                event = self._open[kind] = Event(kind, start, end)
                self.events.append(event)
            event.end_us = end
            alarmed = part[flagged[part]]
            if len(alarmed) and event.first_alarm_us is None:
                event.first_alarm_us = int(frames.time_us[alarmed[0]])
            mask = int(np.bitwise_or.reduce(scores.raised_N[part]))
            event.detectors |= {name for bit, name in enumerate(DETECTORS) if mask >> bit & 1}
            event.hints |= {name for bit, name in enumerate(DETECTORS) if mask >> (bit + HINT) & 1}

    def result(self) -> dict[str, Any]:
        """All metrics, plain values; None where there is nothing to measure."""
        false_alarms = 0
        for alert in self._alerts:
            near = [event for event in self.events if event.start_us <= alert.time_us <= event.end_us + AFTER_US]
            false_alarms += not near
            for event in near:
                if alert.time_us <= event.end_us + GRACE_US:
                    event.detectors.add(alert.detector)
                    event.first_alarm_us = min(event.first_alarm_us or alert.time_us, alert.time_us)
        attacked = sum((event.end_us - event.start_us) / 1e6 for event in self.events)
        benign_hours = max(self.seconds - attacked, 0) / 3600
        delays = [(event.first_alarm_us - event.start_us) / 1e6 for event in self.events if event.first_alarm_us is not None]
        tp, fp, fn, tn = self._confusion.tolist()
        kinds = sorted({event.kind for event in self.events})
        return binary_metrics(tp, fp, fn, tn) | {
            "pr_auc": average_precision(self._benign_B, self._attack_B),
            "attack_frames": tp + fn,
            "events": len(self.events),
            "event_recall": len(delays) / len(self.events) if self.events else None,
            "event_recall_by_class": {kind: _mean([e.first_alarm_us is not None for e in self.events if e.kind == kind]) for kind in kinds},
            "event_recall_by_detector": {
                name: _mean([name in e.detectors for e in self.events])
                for name in DETECTORS
                if any(name in e.detectors for e in self.events)
            },
            "event_recall_with_anomalies": _mean([e.first_alarm_us is not None or bool(e.hints) for e in self.events]),
            "anomaly_recall_by_detector": {
                name: _mean([name in e.hints for e in self.events]) for name in DETECTORS if any(name in e.hints for e in self.events)
            },
            "frame_recall_by_class": {kind: hit / count for kind, (hit, count) in sorted(self._per_class.items())},
            "median_seconds_to_alarm": float(np.median(delays)) if delays else None,
            "max_seconds_to_alarm": max(delays, default=None),
            "false_alarms": false_alarms,
            "benign_hours": benign_hours,
            "false_alarms_per_hour": false_alarms / benign_hours if benign_hours > 0 else None,
        }


def _mean(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
