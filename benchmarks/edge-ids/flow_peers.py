"""Raw-feature detectors against PyOD's and scikit-learn's, and our flow meter against nfstream.

Run: uv run --with pyod --with nfstream python benchmarks/edge-ids/flow_peers.py [detectors|meter]
Detectors: NF-BoT-IoT-v2 (2,818 rows), random split, fitted on the benign part, five seeds, ROC-AUC of the test
part; speed on the same rows many times over. Meter: the capture of a web attack, again and again with later times, each reader in a process of
its own. Both kinds of speed are per second of CPU time, taken in turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from edge_ids.flow.classical import CLASSICAL
from edge_ids.flow.fit import FitConfig, read_all
from edge_ids.flow.packets import read_frames
from edge_ids.flow.scaling import Scaler
from edge_ids.flow.splits import benign, split
from edge_shared.files import read_json, write_json
from edge_shared.report import environment
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or ROOT / "benchmarks" / "results") / "edge-ids-flow-peers.json"
DATA = ROOT.parent / "shared" / "data" / "ids"
FLOWS, CAPTURE = DATA / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz", DATA / "pcap" / "WebattackSQLinj.pcap"
SEEDS, ROWS, COPIES, REPEATS = range(5), 50_000, 1000, 5
OURS = "from edge_ids.flow.meter import read_pcap; print(sum(len(table) for table in read_pcap({!r})))"
NFSTREAM = """
import nfstream
if __name__ == "__main__":
    streamer = nfstream.NFStreamer(source={!r}, idle_timeout=30, active_timeout=120, n_dissections=0, statistical_analysis=True, n_meters=1)
    print(sum(1 for _ in streamer))
"""


def rivals(seed: int) -> dict[str, Any]:
    """Peer of each of our detectors, with its settings as near to ours as it has them."""
    from pyod.models.cblof import CBLOF
    from pyod.models.hbos import HBOS
    from pyod.models.iforest import IForest
    from pyod.models.pca import PCA

    return {
        "iforest": IForest(n_estimators=100, random_state=seed), "pca": PCA(random_state=seed), "hbos": HBOS(n_bins=10),
        "cblof": CBLOF(n_clusters=8, random_state=seed),
    }  # fmt: skip


def used(work: Callable[[], Any]) -> float:
    """CPU seconds of `work`."""
    began = time.process_time()
    work()
    return time.process_time() - began


def detectors() -> dict[str, Any]:
    """ROC-AUC over the seeds and flows scored per CPU second, ours and PyOD's; scikit-learn's forest for the forest."""
    table = read_all(FitConfig(str(FLOWS)))
    assert table.label is not None
    found: dict[str, Any] = {}
    for kind in CLASSICAL:
        auc: dict[str, list[float]] = {"ours": [], "pyod": []}
        infinite = list[float]()
        for seed in SEEDS:
            parts = split(table, "random", seed)
            train = benign(table, parts.train)
            scaler = Scaler.fit(table.features[train], "minmax")
            x, test = scaler.transform(table.features[train]), scaler.transform(table.features[parts.test])
            ours, theirs = CLASSICAL[kind].fit(x, seed), rivals(seed)[kind].fit(x.astype(float))
            labels = table.label[parts.test]
            auc["ours"].append(roc_auc_score(labels, ours.score(test)))
            scores = theirs.decision_function(test.astype(float))
            infinite.append(float(np.isinf(scores).mean()))  # PyOD's PCA divides by the variance of empty axes
            auc["pyod"].append(roc_auc_score(labels, np.nan_to_num(scores)))
        many = scaler.transform(table.features[np.resize(np.arange(len(table)), ROWS)])
        wide = many.astype(float)
        works = {"ours": lambda: ours.score(many), "pyod": lambda: theirs.decision_function(wide)}  # noqa: B023
        if kind == "iforest":
            forest = IsolationForest(n_estimators=100, random_state=seed).fit(x)
            works["sklearn"] = lambda: forest.score_samples(many)  # noqa: B023
            gap = float(np.abs(ours.score(many) + forest.score_samples(many)).max())
        times = {name: [] for name in works}
        for _ in range(REPEATS):
            for name, work in works.items():
                times[name].append(used(work))
        speed = {name: ROWS / median(seconds) for name, seconds in times.items()}
        ratios = np.array(times["pyod"]) / np.array(times["ours"])
        found[kind] = {
            "roc_auc": {name: {"mean": mean(values), "least": min(values), "most": max(values)} for name, values in auc.items()},
            "flows_per_cpu_second": speed, "times_faster_than_pyod": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
            "pyod_infinite_scores": mean(infinite),
        }  # fmt: skip
        if kind == "iforest":
            found[kind]["largest_difference_from_sklearn"] = gap
        print(kind, found[kind], file=sys.stderr, flush=True)
    return found


def longer(path: Path, copies: int) -> int:
    """Write the capture `copies` times over with later times; the number of packets."""
    frames = list(read_frames(CAPTURE))
    span = frames[-1].time - frames[0].time + 200  # every flow of a copy has ended before the next copy begins
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 16, frames[0].link))
        for copy in range(copies):
            for frame in frames:
                moment = frame.time + copy * span
                file.write(struct.pack("<IIII", int(moment), int(moment % 1 * 1e6), len(frame.data), frame.length) + frame.data)
    return copies * len(frames)


def meter() -> dict[str, Any]:
    """Packets per CPU second of our meter and of nfstream, interpreter and imports included, in turns."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "long.pcap"
        packets = longer(path, COPIES)
        scripts = {"ours": OURS, "nfstream": NFSTREAM}
        seconds: dict[str, list[float]] = {key: [] for key in scripts}
        wall: dict[str, list[float]] = {key: [] for key in scripts}
        flows: dict[str, int] = {}
        for key, text in scripts.items():
            (Path(name) / f"run_{key}.py").write_text(text.format(str(path)))
        for _ in range(REPEATS):
            for key in scripts:
                before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                done = subprocess.run([sys.executable, str(Path(name) / f"run_{key}.py")], capture_output=True, text=True, check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                wall[key].append(time.perf_counter() - began)
                seconds[key].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                flows[key] = int(done.stdout.split()[-1])
    ratios = np.array(seconds["nfstream"]) / np.array(seconds["ours"])
    return {
        "capture": CAPTURE.name, "copies": COPIES, "packets": packets, "flows": flows,
        "packets_per_cpu_second": {key: packets / median(values) for key, values in seconds.items()},
        "packets_per_second": {key: packets / median(values) for key, values in wall.items()},
        "times_faster_than_nfstream": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["detectors", "meter"], help="both if omitted")
    part = parser.parse_args().part
    warnings.simplefilter("ignore")
    document = read_json(OUT) if OUT.exists() else {}
    for name, work in (("detectors", detectors), ("meter", meter)):
        if part not in (None, name):
            continue
        document |= {"command": "python benchmarks/edge-ids/flow_peers.py", "environment": environment(), "seeds": len(SEEDS)}
        document[name] = work()
        write_json(OUT, document)


if __name__ == "__main__":
    main()
