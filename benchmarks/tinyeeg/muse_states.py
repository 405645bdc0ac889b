"""What the default gains over a plain LDA on a folder of Muse recordings, named subject{x}-{state}-{n}.csv; leave one person out.

Run: python benchmarks/tinyeeg/muse_states.py FOLDER_OF_CSV_FILES
Made for the recordings of Bird et al., "A Study on Mental State Classification using EEG-based Brain-Machine Interface" (2018): four people,
concentrating, neutral and relaxed, two minutes each (github.com/jordan-bird/eeg-feature-generation, no licence, so not in this repository).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tinyeeg import presets, protocols, readers, splits, training
from tinyeeg.table import extract

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-muse-states.json"


def main() -> None:
    recordings = readers.read_folder(sys.argv[1]).recordings
    chain = training.chain_for(recordings, "compact")
    table = extract(recordings, presets.compact(chain.sfreq, chain.channels, smooth_s=4.0))

    def plain(fold: splits.Fold) -> tuple[np.ndarray, dict]:
        fitted = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(table.X[fold.train], table.windows.y[fold.train])
        return fitted.predict(table.X[fold.test]), {}

    folds = splits.cross_subject(table.windows)
    runs = {"plain LDA on 4 s log band powers": protocols.scored(table.windows, folds, plain, "cross-subject", "plain", "global")}
    table_8s = extract(recordings, chain)
    for normalise in ("auto", "global", "person", "session"):
        runs[f"lda {normalise}"] = protocols.evaluate(table_8s, "cross-subject", normalise=normalise)
    write_json(OUT, {"command": "python benchmarks/tinyeeg/muse_states.py FOLDER", "environment": environment(), "seed": 0,
                     "data": "jordan-bird/eeg-feature-generation, the 24 files subject[a-d]-*.csv", "fingerprint": table_8s.fingerprint,
                     "chance": 1 / len(table.windows.classes),
                     "balanced_accuracy_leave_one_subject_out": {name: run.balanced_accuracy for name, run in runs.items()},
                     "folds": {name: {fold.fold: fold.balanced_accuracy for fold in run.folds} for name, run in runs.items()}})  # fmt: skip
    for name, run in runs.items():
        print(name, round(run.balanced_accuracy, 4), [round(fold.balanced_accuracy, 3) for fold in run.folds])


if __name__ == "__main__":
    main()
