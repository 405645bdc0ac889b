"""Does the default hold on people it has not seen: PhysioNet "EEG during mental arithmetic" (Zyma et al. 2019), rest against counting.

Run: python benchmarks/tinyeeg/mental_arithmetic.py FOLDER_OF_EDF_FILES
36 people, four electrodes near a Muse's (T5 Fp1 Fp2 T6), resampled to 256 Hz, one minute of each state. Scored in groups of four people,
leave one out, as small sets are: three to train on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mne
import numpy as np
from edge_shared.files import write_json
from edge_shared.report import environment
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tinyeeg import presets, protocols
from tinyeeg.recording import Recording, Span
from tinyeeg.table import extract

SITES = ["EEG T5", "EEG Fp1", "EEG Fp2", "EEG T6"]
OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "tinyeeg-mental-arithmetic.json"


def load(folder: Path) -> list[Recording]:
    recordings = []
    for number in range(36):
        for kind, state in ((1, "rest"), (2, "count")):
            raw = mne.io.read_raw_edf(folder / f"Subject{number:02d}_{kind}.edf", preload=True, verbose="error")
            minute = slice(-256 * 60, None) if kind == 1 else slice(0, 256 * 60)
            x = raw.pick(SITES).resample(256, verbose="error").get_data()[:, minute] * 1e6
            recordings.append(
                Recording(x, 256.0, presets.MUSE_CHANNELS, (Span(0, x.shape[1], state),), name=f"{number}{state}", subject=f"{number:02d}")
            )
    return recordings


def main() -> None:
    recordings = load(Path(sys.argv[1]))
    rng = np.random.default_rng(0)
    groups = np.split(rng.permutation(36), 9)
    plain = extract(recordings, presets.compact(smooth_s=4.0))
    ours = extract(recordings, presets.compact())
    scores: dict[str, list[float]] = {}
    for group in groups:
        names = [f"{number:02d}" for number in group]
        for key, table in (("plain", plain), ("ours", ours)):
            rows = np.flatnonzero(np.isin(table.windows.subject, names))
            part = type(table)(table.X[rows], table.windows.take(rows), table.chain, (), False, "")
            if key == "ours":
                for normalise in ("person", "global"):
                    for model in ("lda", "svm", "logistic", "forest", "mlp"):
                        score = protocols.evaluate(part, "cross-subject", model=model, normalise=normalise).balanced_accuracy
                        scores.setdefault(f"{model} {normalise}", []).append(score)
                continue
            for subject in names:
                test = part.windows.subject == subject
                fitted = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(part.X[~test], part.windows.y[~test])
                y, guess = part.windows.y[test], fitted.predict(part.X[test])
                recall = np.mean([np.mean(guess[y == k] == k) for k in np.unique(y)])
                scores.setdefault("plain LDA on 4 s log band powers", []).append(float(recall))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    write_json(OUT, {"command": "python benchmarks/tinyeeg/mental_arithmetic.py FOLDER", "environment": environment(), "seed": 0,
                     "data": "PhysioNet eegmat 1.0.0, 36 people, ODC-BY 1.0", "fingerprint": ours.fingerprint, "chance": 0.5,
                     "groups_of_four": [group.tolist() for group in groups], "balanced_accuracy_leave_one_subject_out": means})  # fmt: skip
    print(means)


if __name__ == "__main__":
    main()
