"""Write the measured figures of the CAN half into packages/edge-ids/README.md, from benchmarks/results/edge-ids-can-*.json.

uv run python benchmarks/edge-ids/can_readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "edge-ids" / "README.md"
BEGIN, END = "<!-- figures of can_bench.py: begin -->\n", "<!-- figures of can_bench.py: end -->\n"


def result(name: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / f"edge-ids-can-{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def speed() -> list[str]:
    rows = []
    if read := result("read"):
        ours, theirs = (read[key] / 1e6 for key in ("frames_per_cpu_second", "python_can_frames_per_cpu_second"))
        rows.append(f"| `read`: candump -L, frames per CPU second | {ours:.1f} M (python-can {theirs:.2f} M) |")
    if detect := result("detect"):
        rows.append(f"| `detect`: batch, frames per CPU second | {detect['batch_frames_per_cpu_second'] / 1e6:.2f} M |")
        late = detect["latency_us"]
        single = detect["single_frames_per_cpu_second"] / 1e3
        rows.append(f"| `detect`: frame by frame, per CPU second | {single:.0f} k, median {late['p50']:.0f} us, p99 {late['p99']:.0f} us |")
    for run in result("live").get("runs", []):
        offered = f"{run['offered_per_second']:,} frames/s offered" if run["offered_per_second"] else "as fast as it goes"
        late = run["latency_us"]
        text = f"{run['frames_per_second'] / 1e3:.1f} k frames/s, {run['dropped']} dropped"
        if run["offered_per_second"]:
            text += f", latency median {late['p50']:.0f} us, p99 {late['p99']:.0f} us"
        rows.append(f"| `live`: {offered} (queue, python-can messages, receiving thread) | {text} |")
    if memory := result("memory"):
        first, last = (memory[key] / 1024 for key in ("peak_rss_kib_after_10_percent", "peak_rss_kib_at_end"))
        rows.append(
            f"| `memory`: 10^7 frames, 5*10^4 distinct IDs | state {memory['state_bytes_after']:,} bytes throughout; "
            f"peak RSS {first:.1f} MiB after 10 %, {last:.1f} MiB at the end |"
        )
    return ["| what | figure |", "|---|---|", *rows, ""] if rows else []


def attacks() -> list[str]:
    table = result("attacks").get("by_attack", {})
    if set(table) != {"trace48", "generated"}:
        return []
    false_alarms = sum(row["false_alarms"] for rows in table.values() for row in rows.values())
    lines = [
        "`attacks`: event recall (number of attacks: one per ID; fuzzing twelve ways), all detectors; the second half of CrySyS trace 48 after 29 s of training (in brackets: with",
        f"anomalies), and generated traffic after 30 minutes of training. False alarms in all of these runs: {false_alarms}.",
        "", "| attack | trace 48 | generated | timing alone, generated | found by (generated) |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for kind, row in table["generated"].items():
        real = table["trace48"].get(kind)
        left = f"{real['event_recall']:.2f} [{real['recall_with_anomalies']:.2f}] ({real['runs']})" if real and real["runs"] else "-"
        found = sorted(row["recall_by_detector"].items(), key=lambda item: -item[1])[:5]
        words = ", ".join(f"{name} {share:.2f}" for name, share in found)
        lines.append(f"| {kind} | {left} | {row['event_recall']:.2f} ({row['runs']}) | {row['timing_recall']:.2f} | {words} |")
    return [*lines, ""]


def benign() -> list[str]:
    found = result("benign")
    if not found:
        return []
    real = sum(row["alerts"] for row in found["real"])
    shares = [f"{100 * share:.0f}" for share in sorted({row["train_share"] for row in found["real"]})]
    words = "; ".join(
        f"{name} {row['mean']:.2f}/h on average over {row['seeds']} seeds, {row['highest']:.2f}/h at most"
        for name, row in found["alerts_per_hour"].items()
    )
    return [
        f"`benign`: the rest of the real traces after training on {', '.join(shares)} % of",
        f"them: {real} alerts. Three hours of generated traffic after 30 minutes of training: {words}.",
        "",
    ]


def leakage() -> list[str]:
    table = result("leakage").get("by_model", {})
    if not table:
        return []
    lines = [
        "`leakage`: eight generated captures, the same data and models under the paper's random split of frames and on held-out captures (deep models trained for 2-3",
        "epochs only). Where F1 falls from left to right, the random split flattered.", "",
        "| model | F1, random split | F1, held-out captures | event recall | false alarms/h |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in table.items():
        left = f"{row['paper']['f1']:.2f}" if "paper" in row else "-"
        right = row.get("time")
        if right:
            lines.append(f"| {name} | {left} | {right['f1']:.2f} | {right['event_recall']:.2f} | {right['false_alarms_per_hour']:.0f} |")
    return [*lines, ""]


if __name__ == "__main__":
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + "\n".join([*speed(), *attacks(), *benign(), *leakage()]) + END + after)
