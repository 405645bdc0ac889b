"""What random folds are worth: the UCI eye-state recording, rows as samples, 1-NN and the windows of the compact chain.

Run: python benchmarks/tinyeeg/eye_state.py [eeg-eye-state.csv]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from tinyeeg import readers

DEFAULT = Path(__file__).parents[3] / "shared" / "data" / "eeg" / "eeg_eye_state" / "eeg-eye-state.csv"
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-eye-state.json"


def main() -> None:
    eye = readers.read(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    y = np.concatenate([np.full(span.stop - span.start, span.state == "closed") for span in eye.spans]).astype(int)
    rows = {}
    for name, folds in (("random_folds", KFold(10, shuffle=True, random_state=0)), ("contiguous_folds", KFold(10))):
        rows[name] = float(cross_val_score(KNeighborsClassifier(1), eye.signal.T, y, cv=folds).mean())
    rows["majority_class"] = float(max(y.mean(), 1 - y.mean()))
    document = {"command": "python benchmarks/tinyeeg/eye_state.py", "environment": environment(), "seed": 0,
                "data": "UCI EEG Eye State", "fingerprint": eye.fingerprint, "accuracy_1nn": rows}  # fmt: skip
    write_json(OUT, document)
    print(rows)


if __name__ == "__main__":
    main()
