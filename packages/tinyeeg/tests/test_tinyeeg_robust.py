"""Folders of CSV files as people export them, trained across subjects: never below a plain LDA on log band powers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from edge_shared.cli import run
from scipy.signal import butter, sosfilt, welch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tinyeeg import protocols, readers, synthetic, training
from tinyeeg.cli import app
from tinyeeg.recording import Recording, Span
from tinyeeg.table import Windows, extract

BANDS = ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45))


def cut(recording: Recording, seconds: float) -> Recording:
    count = min(recording.n_times, round(seconds * recording.sfreq))
    return replace(recording, signal=recording.signal[:, :count], spans=(Span(0, count, recording.spans[0].state),))


def plain_lda(recordings: list[Recording]) -> dict[str, float]:
    """Leave one subject out: 4 s windows every half second, scipy's Welch, log of five bands, standardised, LDA. None of our code."""
    X, y, people = [], [], []
    for recording in recordings:
        rate = round(recording.sfreq)
        x = sosfilt(butter(2, 1, "high", fs=rate, output="sos"), recording.signal - recording.signal[:, :1], axis=1)
        for start in range(0, x.shape[1] - 4 * rate + 1, rate // 2):
            freqs, density = welch(x[:, start : start + 4 * rate], rate, nperseg=2 * rate)
            X.append(np.log([density[:, (freqs >= low) & (freqs < high)].sum(axis=1) for low, high in BANDS]).ravel())
            y.append(recording.spans[0].state)
            people.append(recording.subject)
    X, y, people = np.array(X), np.array(y), np.array(people)
    scores = {}
    for person in np.unique(people):
        test = people == person
        fitted = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(X[~test], y[~test])
        scores[str(person)] = float(balanced_accuracy_score(y[test], fitted.predict(X[test])))
    return scores


def trained(folder, capsys) -> dict:
    assert run(app, ["train", "--csv-dir", str(folder), "--protocol", "cross-subject", "--json"]) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    folds = document["metrics"]["folds"]
    assert document["metrics"]["balanced_accuracy"] == pytest.approx(np.mean([fold["balanced_accuracy"] for fold in folds]))
    return document


def iso(times, form="%Y-%m-%d %H:%M:%S.%f"):
    return [datetime.fromtimestamp(time, UTC).strftime(form) for time in times]


def muse_lsl(x, times, rng):
    return "timestamps,TP9,AF7,AF8,TP10,Right AUX", [[f"{t:.6f}" for t in times], *cells(x), cells(rng.normal(size=(1, len(times))))[0]]


def bare_seconds(x, times, rng):
    return "time,TP9,AF7,AF8,TP10", [[f"{t - times[0]:.4f}" for t in times], *cells(x)]


def mind_monitor(x, times, rng):
    extra = rng.normal(size=(5, len(times)))
    names = "TimeStamp,Delta_TP9,Alpha_AF7,RAW_TP9,RAW_AF7,RAW_AF8,RAW_TP10,AUX_RIGHT,Accelerometer_X,Battery,Elements"
    return names, [iso(times), *cells(extra[:2]), *cells(x), *cells(extra[2:]), [""] * len(times)]


def iso_with_zone_and_units(x, times, rng):
    return "index,datetime,TP9 (uV),AF7 (uV),AF8 (uV),TP10 (uV)", [
        [str(i) for i in range(len(times))], iso(times, "%Y-%m-%dT%H:%M:%S.%f+00:00"), *cells(x),
    ]  # fmt: skip


def milliseconds_semicolons(x, times, rng):
    return "timestamp;EEG.TP9;EEG.AF7;EEG.AF8;EEG.TP10;aux", [[f"{1000 * t:.0f}" for t in times], *cells(x), ["nan"] * len(times)]


def time_of_day(x, times, rng):
    return "Time,TP10,AF8,AF7,TP9", [iso(times, "%H:%M:%S.%f"), *cells(x[::-1])]


def no_times_no_names(x, times, rng):
    return "ch1,ch2,ch3,ch4", cells(x)


def frozen_clock(x, times, rng):
    return "timestamps,TP9,AF7,AF8,TP10", [["1.5E+09"] * len(times), *cells(x)]


def cells(rows):
    return [["" if np.isnan(value) else f"{value:.3f}" for value in row] for row in rows]


def untouched(x, times, rng):
    return x, times


def jitter(x, times, rng):
    """Bluetooth arrival times: 4 ms of noise, out of order, one hour of drift."""
    return x, times * 1.0001 + rng.normal(0, 0.004, len(times))


def repeated_and_swapped(x, times, rng):
    """Every tenth row written twice, now and then two neighbours in the wrong order."""
    order = np.sort(np.concatenate([np.arange(len(times)), np.arange(0, len(times), 10)]))
    swap = np.arange(5, len(order) - 1, 37)
    order[swap], order[swap + 1] = order[swap + 1].copy(), order[swap].copy()
    return x[:, order], times[order]


def holes(x, times, rng):
    """A pause of 700 s, lost packets, missing values, a dead stretch of one electrode."""
    x, times = x.copy(), times.copy()
    times[len(times) // 3 :] += 700
    keep = np.ones(len(times), bool)
    for start in rng.integers(100, len(times) - 100, 8):
        keep[start : start + 12] = False
        x[rng.integers(4), start + 40 : start + 48] = np.nan
    x[2, 1000:1300] = np.nan
    return x[:, keep], times[keep]


def bursts(x, times, rng):
    """One stamp for each radio packet of twelve samples."""
    return x, times[np.arange(len(times)) // 12 * 12]


CASES = {
    "muse-lsl": (muse_lsl, untouched),
    "muse-lsl, jitter": (muse_lsl, jitter),
    "muse-lsl, holes": (muse_lsl, holes),
    "muse-lsl, bursts": (muse_lsl, bursts),
    "seconds, repeated": (bare_seconds, repeated_and_swapped),
    "Mind Monitor": (mind_monitor, untouched),
    "Mind Monitor, holes": (mind_monitor, holes),
    "ISO with zone": (iso_with_zone_and_units, jitter),
    "milliseconds": (milliseconds_semicolons, repeated_and_swapped),
    "time of day": (time_of_day, holes),
    "no times": (no_times_no_names, untouched),
    "frozen clock": (frozen_clock, untouched),
}


@pytest.fixture(scope="module")
def people():
    return synthetic.generate(subjects=3, sessions=1, seconds=30, seed=3, effect=1.5)


@pytest.fixture(scope="module")
def reference(people):
    return float(np.mean(list(plain_lda(people).values())))


@pytest.mark.parametrize("case", CASES)
def test_layouts_stamps_and_holes(tmp_path, people, reference, capsys, case):
    layout, damage = CASES[case]
    for index, recording in enumerate(people):
        rng = np.random.default_rng(index)
        times = 1.6e9 + 1000 * index + np.arange(recording.n_times) / 256
        header, columns = layout(*damage(recording.signal, times, rng), rng)
        separator = ";" if ";" in header else ","
        text = "\n".join([header, *(separator.join(row) for row in zip(*columns, strict=True))])
        (tmp_path / f"{recording.name}.csv").write_text(text + "\n")
    document = trained(tmp_path, capsys)
    assert (document["subjects"], document["recordings"], document["sfreq"], len(document["channels"])) == (3, 9, 256.0, 4)
    assert document["windows"] >= 9 * 40
    assert document["metrics"]["balanced_accuracy"] >= max(reference, 0.8)


def arrays(recordings, folder):
    """The same recordings as files, quickly: float32 text of seconds and four columns."""
    for recording in recordings:
        times = np.arange(recording.n_times) / recording.sfreq
        np.savetxt(
            folder / f"{recording.name}.csv", np.column_stack([times, recording.signal.T]), fmt="%.5f", delimiter=",",
            header=",".join(["timestamps", *recording.channels]), comments="",
        )  # fmt: skip


DIFFICULTIES = {
    "hard": {"effect": 0.5},
    "usual": {"effect": 1.0},
    "easy": {"effect": 2.5},
    "one session": {"effect": 1.0, "sessions": 1},
    "two people": {"effect": 1.0, "subjects": 2},
}


@pytest.mark.parametrize("name", DIFFICULTIES)
@pytest.mark.parametrize("shape", ["alike", "of different length"])
def test_never_below_a_plain_lda(name, shape):
    recordings = synthetic.generate(**{"subjects": 4, "sessions": 2, "seconds": 30, "seed": 11, **DIFFICULTIES[name]})
    if shape != "alike":
        rng = np.random.default_rng(5)
        recordings = [cut(recording, rng.choice([12, 20, 30])) for recording in recordings]
    table = extract(recordings, training.chain_for(recordings, "compact"))
    found = protocols.evaluate(table, "cross-subject")
    assert found.balanced_accuracy >= np.mean(list(plain_lda(recordings).values()))


def test_two_or_three_states_of_any_name(tmp_path, capsys):
    base = synthetic.generate(subjects=3, sessions=1, seconds=20, effect=1.5)
    names = {"drowsy": "eyes-closed", "focused": "2back", "unfocused": "Level 3"}
    for keep in (("drowsy", "focused"), ("drowsy", "focused", "unfocused")):
        folder = tmp_path / str(len(keep))
        folder.mkdir()
        chosen = [recording for recording in base if recording.spans[0].state in keep]
        renamed = [replace(r, name=f"{r.subject}-{names[r.spans[0].state]}-{r.session}") for r in chosen]
        arrays(renamed, folder)
        document = trained(folder, capsys)
        assert document["classes"] == sorted(names[state] for state in keep)
        assert document["metrics"]["balanced_accuracy"] >= np.mean(list(plain_lda(chosen).values()))


def windows_of(rows: list[tuple[str, str, int]]) -> Windows:
    subject, session, y = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), dtype=np.int64)
    return Windows(y, ("a", "b"), subject, session, subject, zeros, zeros, zeros + 1, zeros.astype(float), 1.0)


def test_what_is_centred_follows_from_who_showed_what():
    alike = [(person, session, y) for person in "pqr" for session in "12" for y in (0, 1)]
    assert protocols.resolve("auto", "cross-subject", windows_of(alike)) == "session"
    assert protocols.resolve("auto", "adaptable", windows_of(alike)) == "person"
    assert protocols.resolve("auto", "within-session", windows_of(alike)) == "global"
    by_session = [(person, str(y), y) for person in "pqr" for y in (0, 1)]
    assert protocols.resolve("auto", "cross-subject", windows_of(by_session)) == "person"
    lopsided = [*alike, *[("p", "1", 0)] * 9]
    assert protocols.resolve("auto", "cross-subject", windows_of(lopsided)) == "person"
    by_person = [(person, "1", y) for person, y in (("p", 0), ("q", 1), ("r", 0), ("s", 1))]
    assert protocols.resolve("auto", "cross-subject", windows_of(by_person)) == "global"


def test_a_tested_persons_windows_are_used_only_where_that_pays_between_training_people():
    rng = np.random.default_rng(0)
    people = [(person, "1", y) for person in "pqrst" for y in (0, 1) for _ in range(40)]
    windows = windows_of(people)
    person = np.unique(windows.subject, return_inverse=True)[1]
    noise = rng.normal(size=(len(people), 4))
    state = np.outer(windows.y, [1.5, 0, 0, 0])
    offsets = 6 * rng.normal(size=(5, 4))[person]
    assert protocols.choose(noise + state + offsets, windows, "auto", "cross-subject") == "session"
    assert protocols.choose(noise + state, windows, "auto", "cross-subject") == "global"
    assert protocols.choose(noise + state, windows, "person", "cross-subject") == "person"
    one = np.flatnonzero(windows.subject == "p")
    assert protocols.choose(noise[one], windows.take(one), "auto", "cross-subject") == "global"


def test_names_that_differ_in_case_alone_are_one_state_and_one_person(tmp_path):
    base = synthetic.generate(subjects=2, sessions=2, seconds=10)
    names = [f"{r.subject.title()}-{r.spans[0].state.upper()}-2" if r.session == "2" else f"{r.subject}-{r.spans[0].state}-1" for r in base]
    arrays([replace(recording, name=name) for recording, name in zip(base, names, strict=True)], tmp_path)
    found = readers.read_folder(tmp_path).recordings
    assert len(found) == 12
    assert len({recording.subject for recording in found}) == 2
    assert len({span.state for recording in found for span in recording.spans}) == 3
    assert sum("read as" in note for recording in found for note in recording.notes) == 12


def test_a_table_of_features_beside_numbered_recordings_is_left_out(tmp_path):
    arrays(synthetic.generate(subjects=1, sessions=1, seconds=10), tmp_path)
    (tmp_path / "mental-state.csv").write_text("mean,std\n1,2\n")
    folder = readers.read_folder(tmp_path)
    assert len(folder.recordings) == 3
    assert [name for name, _ in folder.left_out] == ["mental-state.csv"]


@pytest.mark.parametrize(
    ("stem", "wanted"),
    [
        ("subject1-eyes_open-2", ("subject1", "eyes_open", "2")),
        ("subject12-low-attention-10", ("subject12", "low-attention", "10")),
        ("subjectb-level2-1", ("subjectb", "level2", "1")),
        ("subject3-2back-1", ("subject3", "2back", "1")),
        ("sub-03_rest_2", ("sub-03", "rest", "2")),
        ("S1-relaxed", ("S1", "relaxed", None)),
        ("subjectc-État de repos-1", ("subjectc", "État de repos", "1")),
    ],
)
def test_names(stem, wanted):
    found = readers.identify(stem)
    assert (found["subject"], found["state"], found.get("session")) == wanted
