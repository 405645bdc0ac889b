"""No splitter lets a sample, person or session through; the leaky split is caught; scores are what the data allow."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyeeg import audit, models, presets, protocols, readers, splits, synthetic
from tinyeeg.chain import Smoothing
from tinyeeg.recording import Recording, Span
from tinyeeg.splits import Fold
from tinyeeg.table import Windows, common_channels, extract

REAL = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "eeg"


@pytest.fixture(scope="module")
def table():
    return extract(synthetic.generate(seconds=40), presets.compact())


def samples(windows, rows):
    """Every (recording, raw sample) that these windows saw, by brute force."""
    return {(windows.recording[row], sample) for row in rows for sample in range(windows.start[row], windows.stop[row], 16)}


@st.composite
def random_windows(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = []
    stretch = 0
    for subject in range(draw(st.integers(2, 4))):
        for session in range(draw(st.integers(2, 3))):
            for state in range(2):
                count, hop = int(rng.integers(12, 30)), int(rng.integers(1, 4)) * 16
                start = hop * np.arange(count)
                for begin in start:
                    rows.append((state, f"s{subject}", f"{session}", f"r{subject}-{session}-{state}", stretch, begin, begin + 96))
                stretch += 1
    y, subject, session, recording, number, start, stop = (np.array(column) for column in zip(*rows, strict=True))
    return Windows(y, ("a", "b"), subject, session, recording, number, start, stop, start / 60.0, 16.0)


@settings(max_examples=30, deadline=None)
@given(windows=random_windows(), protocol=st.sampled_from(splits.PROTOCOLS))
def test_no_protocol_shares_a_sample_or_an_identity(windows, protocol):
    folds = splits.split(protocol, windows, folds=2, calibration_s=8.0)
    tested = np.concatenate([fold.test for fold in folds])
    assert len(np.unique(tested)) == len(tested)
    for fold in folds:
        assert not samples(windows, fold.train) & samples(windows, fold.test)
        assert len(fold.test)
        assert set(windows.y[fold.test]) <= set(windows.y[fold.train])
        assert len(set(windows.y[fold.train])) > 1
        if protocol == "cross-subject":
            assert not set(windows.subject[fold.train]) & set(windows.subject[fold.test])
        if protocol == "cross-session":
            assert len(set(windows.subject[fold.train])) == 1
            assert not set(windows.session[fold.train]) & set(windows.session[fold.test])
    assert audit.audit_folds(windows, folds, protocol) == []


@settings(max_examples=20, deadline=None)
@given(windows=random_windows(), seed=st.integers(0, 99), embargo=st.integers(0, 40))
def test_overlapping_equals_brute_force(windows, seed, embargo):
    rows = np.random.default_rng(seed).permutation(len(windows))
    mine, theirs = np.sort(rows[:15]), np.sort(rows[15:30])
    wanted = [
        any(
            windows.recording[a] == windows.recording[b]
            and windows.start[a] - embargo < windows.stop[b]
            and windows.start[b] - embargo < windows.stop[a]
            for b in theirs
        )
        for a in mine
    ]
    np.testing.assert_array_equal(splits.overlapping(windows, mine, theirs, embargo), wanted)


def bouts(states, per_bout=6, look_back=96, hop=16):
    """One recording whose state changes bout by bout, each shorter than the look-back allows a window of it beside a test block."""
    y = np.repeat(states, per_bout)
    stop = 160 * np.repeat(np.arange(len(states)), per_bout) + 32 + hop * np.tile(np.arange(per_bout), len(states))
    start = np.maximum(160 * np.repeat(np.arange(len(states)), per_bout), stop - look_back)
    names = np.full(len(y), "s")
    return Windows(y, ("a", "b"), names, names, names, np.repeat(np.arange(len(states)), per_bout), start, stop, stop / 60.0, 16.0)


def test_within_session_tests_short_bouts_against_the_other_bouts():
    windows = bouts([0, 1] * 6)
    folds = splits.within_session(windows)
    assert len(folds) == 5
    assert len(np.concatenate([fold.test for fold in folds])) == len(windows)
    for fold in folds:
        assert not samples(windows, fold.train) & samples(windows, fold.test)
        assert np.bincount(windows.y[fold.train]).min() >= 12


def test_training_windows_of_one_state_are_refused_or_skipped():
    one = bouts([0, 0, 0])
    with pytest.raises(InputError, match="each session shows one state only"):
        splits.within_session(one)
    both = replace(one, y=np.repeat([0, 0, 1], 6), session=np.repeat(["1", "2", "3"], 6))
    with pytest.raises(InputError, match="no training window of b is left"):
        splits.cross_session(both)
    alone = replace(one, session=np.repeat(["1", "2", "2"], 6))
    with pytest.raises(InputError, match="show one state only"):
        splits.cross_session(alone)


def test_look_back_counts_as_sample_use(table):
    chain = table.chain
    assert (table.windows.stop - table.windows.start).max() == chain.look_back == chain.segment + 12 * chain.hop
    wide = replace(chain, smoothing=Smoothing("exponential", 8))
    assert wide.look_back == chain.segment + 23 * chain.hop


def test_random_windows_are_caught_and_duplicates_too(table):
    leaks = audit.audit_folds(table.windows, splits.random_windows(table.windows), splits.LEAKY)
    assert {leak.kind for leak in leaks} == {"overlap"}
    assert len(leaks) == 5
    rows = np.arange(len(table.windows))
    both = audit.audit_folds(table.windows, [Fold("x", rows, rows[:7])], "cross-subject")
    assert {leak.kind for leak in both} == {"overlap", "subject"}
    assert both[0].count == 7


def test_fitting_before_the_split_is_found(table):
    fold = splits.cross_subject(table.windows)[0]
    y = table.windows.y

    def leaky(X, y, fold):
        scaled = (X - X.mean(axis=0)) / X.std(axis=0)  # over all rows, test rows included
        return models.make("forest").named_steps["model"].fit(scaled[fold.train], y[fold.train]).predict(
            np.tanh(scaled[fold.train] / 3)
        ) + (scaled[fold.train, 0] > 0.3)

    def clean(X, y, fold):
        return models.make("lda").fit(X[fold.train], y[fold.train]).predict(X[fold.train])

    assert audit.fitted_before_split(leaky, table.X, y, fold).kind == "fitted-before-split"
    assert audit.fitted_before_split(clean, table.X, y, fold) is None


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
def test_our_own_protocols_pass_their_audit(table, protocol):
    result = audit.audit_table(table, protocol)
    assert result.leaks == ()
    # Where windows overlap, the nearest neighbour is the neighbour in time: the whole story of near-perfect scores.
    assert result.scores["leaky"]["nearest"] > 0.95
    if protocol == "cross-subject":
        assert result.scores["clean"]["nearest"] < 0.7


def test_a_person_is_not_a_state():
    """Label by the parity of a recording that only a fingerprint tells: perfect with random windows, chance between people."""
    rng = np.random.default_rng(0)
    recordings = []
    for subject in range(12):
        gain = np.exp(rng.normal(0, 1, 4))[:, None]
        signal = gain * rng.normal(size=(4, 256 * 30))
        recordings.append(
            Recording(
                signal, 256.0, presets.MUSE_CHANNELS, (Span(0, 256 * 30, "ab"[subject % 2]),), subject=f"{subject:02d}", name=f"{subject}"
            )
        )
    table = extract(recordings, presets.compact())
    assert protocols.nearest(table, splits.random_windows(table.windows), splits.LEAKY).balanced_accuracy > 0.98
    clean = [row.balanced_accuracy for row in protocols.nearest(table, splits.cross_subject(table.windows), "cross-subject").folds]
    assert np.mean(clean) < 0.8
    assert len(clean) == 12


def test_separable_states_are_separated_and_identical_ones_are_not():
    strong = extract(synthetic.generate(seconds=40, effect=3.0), presets.compact())
    assert protocols.evaluate(strong, "cross-subject").balanced_accuracy > 0.95
    none = extract(synthetic.generate(seconds=40, effect=0.0, subjects=6), presets.compact())
    score = protocols.evaluate(none, "cross-subject").balanced_accuracy
    # 36 recordings are the independent units: three standard deviations of a binomial share at chance.
    assert abs(score - 1 / 3) < 3 * np.sqrt(2 / 9 / 36)


def test_person_mean_uses_no_label_and_no_other_person(table):
    windows = table.windows
    base = protocols.centred(table.X, windows, "person", "cross-subject")
    shuffled = replace(windows, y=np.random.default_rng(0).permutation(windows.y))
    np.testing.assert_array_equal(protocols.centred(table.X, shuffled, "person", "cross-subject"), base)
    changed = table.X.copy()
    own = windows.subject == "subjecta"
    changed[own] += 50
    np.testing.assert_array_equal(protocols.centred(changed, windows, "person", "cross-subject")[~own], base[~own])
    np.testing.assert_allclose(protocols.centred(changed, windows, "person", "cross-subject")[own], base[own], atol=1e-9)


def test_adaptable_takes_the_mean_from_the_calibration_alone(table):
    fold = splits.adaptable(table.windows)[0]
    own = table.windows.subject == "subjecta"
    calibration = fold.train[own[fold.train]]
    assert 0 < len(calibration) < len(fold.test)
    assert table.windows.session[calibration].tolist() == ["1"] * len(calibration)
    changed = table.X.copy()
    changed[fold.test] += 5
    first = protocols.centred(table.X, table.windows, "person", "adaptable", fold)
    second = protocols.centred(changed, table.windows, "person", "adaptable", fold)
    np.testing.assert_array_equal(first[fold.train], second[fold.train])
    np.testing.assert_allclose(second[fold.test] - first[fold.test], 5)


def test_tuning_is_nested_and_seeded(table):
    first, second = (protocols.evaluate(table, "cross-subject", model="svm", tune=True, seed=3) for _ in range(2))
    assert first.folds == second.folds
    assert all(fold.parameters["C"] in models.grid("svm")["model__C"] for fold in first.folds)
    for train, test in splits.inner_split("cross-subject", table.windows.take(splits.cross_subject(table.windows)[0].train)):
        assert not set(train) & set(test)


def test_the_clock_is_found_where_time_is_the_label():
    recordings = [
        Recording(
            np.random.default_rng(k).normal(size=(4, 256 * 60)), 256.0, presets.MUSE_CHANNELS,
            (Span(0, 256 * 30, "focused"), Span(256 * 30, 256 * 60, "drowsy")), subject=str(k),
        )
        for k in range(3)
    ]  # fmt: skip
    table = extract(recordings, presets.compact())
    assert protocols.time_only(table.windows, "cross-subject").balanced_accuracy > 0.95
    assert protocols.evaluate(table, "cross-subject").balanced_accuracy < 0.75


def test_a_state_shown_too_briefly_costs_its_own_windows_and_no_fold(table):
    windows = table.windows.take(np.flatnonzero(table.windows.person_session == table.windows.person_session[0]))
    brief = windows.take(np.concatenate([np.flatnonzero(windows.y != 1), np.flatnonzero(windows.y == 1)[:1]]))
    folds = splits.split("within-session", brief)
    tested = np.concatenate([fold.test for fold in folds])
    assert len(folds) == 5
    assert set(brief.y[tested]) == {0, 2}
    with pytest.raises(InputError, match="no fold keeps training windows of two states"):
        splits.split("within-session", brief.take(np.array([0, len(brief) - 1])))


def test_data_that_a_protocol_cannot_split_are_refused(table):
    one = table.windows.take(np.flatnonzero(table.windows.person_session == "subjecta/1"))
    with pytest.raises(InputError, match="cross-subject needs 2 or more subjects, got 1"):
        splits.cross_subject(one)
    with pytest.raises(InputError, match="two or more sessions"):
        splits.cross_session(one)
    with pytest.raises(InputError, match="shorter than one window"):
        splits.adaptable(table.windows, 0.5)
    with pytest.raises(InputError, match="not known"):
        splits.split("holdout", table.windows)
    with pytest.raises(InputError, match="1 state"):
        extract([replace(synthetic.generate(subjects=1, sessions=1, seconds=5)[0])], presets.compact())
    with pytest.raises(InputError, match="share no channel"):
        common_channels([replace(r, channels=tuple(f"{r.name}{i}" for i in range(4))) for r in synthetic.generate(subjects=1, seconds=5)])


def test_split_files_of_other_tools(tmp_path):
    def window(start, subject="a", recording="r1"):
        return {"recording": recording, "start": start, "stop": start + 100, "subject": subject, "session": "1"}

    def write(train, test):
        (tmp_path / "s.json").write_text(json.dumps({"protocol": "cross-subject", "folds": [{"train": train, "test": test}]}))
        return [leak.kind for leak in audit.audit_file(tmp_path / "s.json").leaks]

    assert write([window(0)], [window(0, "b", "r2")]) == []
    assert write([window(0)], [window(99, "b")]) == ["overlap"]
    assert write([window(0)], [window(100, "b")]) == []
    assert write([window(0)], [window(0, "a", "r2")]) == ["subject"]
    with pytest.raises(InputError, match="no split"):
        write([{"recording": "x"}], [])


@pytest.mark.skipif(not REAL.exists(), reason="real EEG is not on this machine")
def test_eye_state_rows_leak_when_they_are_shuffled():
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    eye = readers.read(REAL / "eeg_eye_state" / "eeg-eye-state.csv")
    y = np.concatenate([np.full(span.stop - span.start, span.state == "closed") for span in eye.spans])
    X = eye.signal.T
    shuffled = cross_val_score(KNeighborsClassifier(1), X, y, cv=KFold(10, shuffle=True, random_state=0)).mean()
    contiguous = cross_val_score(KNeighborsClassifier(1), X, y, cv=KFold(10)).mean()
    assert shuffled > 0.9
    assert contiguous < 0.65
