"""What a freshly trained detector makes of attacks: the project's injectors on the last quarter of the user's own traffic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can.detector import Detection, StreamingDetector
from edge_ids.can.engine import DETECTORS
from edge_ids.can.frames import Array, Frames
from edge_ids.can.inject import KINDS, Attack, inject
from edge_ids.can.metrics import Evaluation
from edge_ids.can.profile import Profile, train

SEGMENT_SECONDS = 30.0
TARGETS = 4


@dataclass
class SelfTest:
    """Recall per attack, and what the plots need.

    Attributes:
        benign: metrics of the untouched held-out traffic (`Evaluation.result`).
        attacks: kind -> runs, event recall, recall with anomalies, recall by detector, false alarms, seconds to the alarm.
        scores, truth: ratio and truth of every frame of every attacked segment.
        timeline: seconds and ratios of the held-out traffic with the attack kinds one after the other, and their spans.
    """

    benign: dict[str, Any]
    attacks: dict[str, dict[str, Any]]
    scores: Array
    truth: Array
    timeline: dict[str, Any]


def self_test(frames: Frames, share: float = 0.75, seed: int = 0) -> SelfTest | None:
    """Train on the first part of the time and attack the rest; None if there is too little of either.

    Args:
        frames: captures in order; labelled attacks stay in the held-out part and count there.
        share: of the frames that train.
        seed: of targets and injections.
    """
    cut = int(len(frames) * share)
    first, rest = frames.take(slice(0, cut)), frames.take(slice(cut, None))
    if (first.label <= 0).sum() < 100 or not len(rest):
        return None
    profile = train(first)
    evaluation = Evaluation()
    evaluation.add(rest, StreamingDetector(profile).process(rest))
    benign = rest.take((rest.capture == rest.capture[0]) & (rest.label <= 0))
    benign = benign.take(benign.time_us < benign.time_us[0] + int(SEGMENT_SECONDS * 1e6)) if len(benign) else benign
    test = SelfTest(evaluation.result(), {}, np.zeros(0), np.zeros(0, np.bool_), {})
    if len(benign) < 200 or (np.diff(benign.time_us) < 0).any():
        return test
    scores, truths = [], []
    for kind in KINDS:
        row, score, truth = _attack(profile, benign, kind, seed)
        if row is not None:
            test.attacks[kind] = row
            scores.append(score)
            truths.append(truth)
    if scores:
        test.scores, test.truth = np.concatenate(scores), np.concatenate(truths)
    test.timeline = _timeline(profile, benign, seed)
    return test


def _attack(profile: Profile, benign: Frames, kind: str, seed: int) -> tuple[dict[str, Any] | None, Array, Array]:
    ids, counts = np.unique(benign.id, return_counts=True)
    chosen = np.random.default_rng(seed).permutation(ids[counts >= 10])[:TARGETS]
    targets = [None] if kind in ("fuzzing", "dos") else chosen.tolist()
    found: Counter[str] = Counter()
    events, hints, delays, false_alarms, scores, truths = [], [], [], 0, [np.zeros(0)], [np.zeros(0, np.bool_)]
    for target in targets:
        try:
            injection = inject(benign, Attack(kind, benign.seconds * 0.4, benign.seconds * 0.7, target), seed=seed)
        except InputError:
            continue  # this ID has nothing that moves, or was not there before
        attacked = injection.frames
        if kind.startswith("masquerade") and not (attacked.data != benign.data).any():
            continue
        origin = int(benign.time_us[0])
        planned = _planned(kind, origin, injection.interval)
        verdict = StreamingDetector(profile).process(attacked)
        evaluation = Evaluation(planned)
        evaluation.add(attacked, verdict)
        result = evaluation.result()
        events.append(result["event_recall"] or 0.0)
        hints.append(result["event_recall_with_anomalies"] or 0.0)
        false_alarms += result["false_alarms"]
        found.update(result["event_recall_by_detector"])
        if result["median_seconds_to_alarm"] is not None:
            delays.append(result["median_seconds_to_alarm"])
        scores.append(verdict.ratio_N)
        truths.append(attacked.attack)
    if not events:
        return None, scores[0], truths[0]
    n = len(events)
    row = {
        "runs": n, "event_recall": float(np.mean(events)), "recall_with_anomalies": float(np.mean(hints)),
        "recall_by_detector": {name: found[name] / n for name in DETECTORS if found[name]}, "false_alarms": false_alarms,
        "median_seconds_to_alarm": float(np.median(delays)) if delays else None,
    }  # fmt: skip
    return row, np.concatenate(scores), np.concatenate(truths)


def _planned(kind: str, origin: int, interval: tuple[float, float]) -> list[tuple[str, int, int]] | None:
    """A suspension leaves no frame to label; its interval is told."""
    return [(kind, origin + round(interval[0] * 1e6), origin + round(interval[1] * 1e6))] if kind == "suspension" else None


def _timeline(profile: Profile, benign: Frames, seed: int) -> dict[str, Any]:
    frames = benign
    kinds = ("fuzzing", "fabrication", "masquerade", "masquerade-replay")
    for number, kind in enumerate(kinds):
        begin = benign.seconds * (0.15 + 0.2 * number)
        try:
            frames = inject(frames, Attack(kind, begin, begin + benign.seconds * 0.1), seed=seed).frames
        except InputError:
            continue
    verdict = StreamingDetector(profile).process(frames)
    origin = int(frames.time_us[0])
    spans = []
    for code, name in enumerate(frames.classes):
        times = frames.time_us[frames.label == code]
        if code and len(times):
            spans.append((name, (int(times[0]) - origin) / 1e6, (int(times[-1]) - origin) / 1e6))
    alerts: list[Detection] = [found for found in verdict.detections if not found.anomaly]
    return {
        "seconds": (frames.time_us - origin) / 1e6, "ratio": verdict.ratio_N, "spans": spans,
        "alerts": [((found.time_us - origin) / 1e6, found.detector) for found in alerts],
    }  # fmt: skip


def write_report(folder: Path, source: str, result: dict[str, Any], test: SelfTest | None, synthetic: bool) -> list[str]:
    """Write ``report.html`` and its plots; returns the files."""
    from edge_shared.report import DataInfo, Result, Section, Table, write_html

    info = result["profile"]
    rows = [[name.replace("_", " "), info[name]] for name in ("frames", "seconds", "ids", "periodic_ids", "checksums", "cross_checks")]
    sections = [
        Section("Training", "What the detector learned from benign traffic. A tiny int8 network is part of it." if info["tiny_network"] else "",
                Table(["", "value"], rows)),
    ]  # fmt: skip
    notes = [] if info["mature"] else ["Under 5 minutes of traffic: detectors of payload values report anomalies, not alerts."]
    if test is not None:
        held = test.benign
        text = f"{held['false_alarms']} false alarms in {held['benign_hours'] * 3600:.1f} s of held-out traffic (the last quarter)."
        sections.append(Section("Held-out traffic", text))
    files: list[str] = []
    if test is not None and test.attacks:
        figures = _plots(folder, test)
        files = [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
        table = [
            [kind, row["runs"], row["event_recall"], row["recall_with_anomalies"], row["median_seconds_to_alarm"], row["false_alarms"]]
            for kind, row in test.attacks.items()
        ]
        columns = ["attack", "IDs attacked", "event recall", "with anomalies", "seconds to alarm", "false alarms"]
        text = (
            "Attacks by this program's own injectors on the held-out quarter, seen by a model of the first three quarters. Semi-synthetic: "
            "they say what each detector can see in this traffic, not how an attacker would behave."
        )
        sections.append(Section("Injected attacks", text, Table(columns, table), figures))
    outcome = Result(
        command="edge-ids can train", metrics=result["metrics"], cost=result["cost"], notes=notes,
        data=DataInfo(name=source or "frames", fingerprint=result["data"]["fingerprint"], synthetic=synthetic),
    )  # fmt: skip
    write_html(folder, f"CAN detector trained on {Path(source).name or 'frames'}", sections, outcome)
    return ["report.html", *files]


def _plots(folder: Path, test: SelfTest) -> list[str]:
    from edge_shared.report import figure

    detectors = [name for name in DETECTORS if any(name in row["recall_by_detector"] for row in test.attacks.values())]
    kinds = list(test.attacks)
    grid = np.array([[test.attacks[kind]["recall_by_detector"].get(name, 0.0) for name in detectors] for kind in kinds])
    names = []
    if detectors:
        with figure(folder, "detectors", size=(7.5, 4.2)) as axes:
            axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(detectors)), detectors, rotation=40, ha="right")
            axes.set_yticks(range(len(kinds)), kinds)
            for (y, x), value in np.ndenumerate(grid):
                if value:
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.5 else "black")
            axes.grid(False)
            axes.set(title="Share of attacked IDs that each detector reports")
        names.append("detectors")
    if test.truth.any() and not test.truth.all():
        from sklearn.metrics import average_precision_score, precision_recall_curve

        precision, recall, _ = precision_recall_curve(test.truth, test.scores)
        with figure(folder, "precision-recall") as axes:
            area = average_precision_score(test.truth, test.scores)
            axes.plot(recall, precision, drawstyle="steps-post", label=f"frames of all attacks, PR-AUC {area:.3f}")
            axes.axhline(test.truth.mean(), color="grey", linestyle=":", linewidth=1, label="coin")
            axes.set(xlabel="recall", ylabel="precision", title="Attack frames", ylim=(0, 1.02))
            axes.legend()
        names.append("precision-recall")
    line = test.timeline
    with figure(folder, "timeline", size=(7.5, 3.4)) as axes:
        axes.plot(line["seconds"], line["ratio"], linewidth=0.6)
        axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
        for name, start, end in line["spans"]:
            axes.axvspan(start, end, alpha=0.15, color="#c23b6d")
            axes.text(start, 2.06, name, fontsize=7)
        for time, detectors in _together(line["alerts"]):
            axes.plot(time, 1, "v", color="#c23b6d", markersize=5)
            axes.annotate(", ".join(detectors), (time, 1), fontsize=6, rotation=60, xytext=(2, 4), textcoords="offset points")
        axes.set(xlabel="time (s)", ylabel="evidence / threshold", ylim=(0, 2.25))
        axes.set_title("Held-out traffic with attacks (shaded); triangles are alerts", pad=10)
    return [*names, "timeline"]


def _together(alerts: list[tuple[float, str]]) -> list[tuple[float, list[str]]]:
    """Alerts closer than half a second share a mark, so that their names can be read."""
    groups: list[tuple[float, list[str]]] = []
    for time, detector in alerts:
        if groups and time - groups[-1][0] < 0.5:
            groups[-1][1].append(detector)
        else:
            groups.append((time, [detector]))
    return groups
