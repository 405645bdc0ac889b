"""Protocols as splitters that cannot leak, named as MOABB names them: within-session, cross-session, cross-subject; and adaptable.

A splitter takes `Windows` and gives folds of row numbers. In none of them does a test window share a raw sample with a
training window, look-back of the smoothing included. `random_windows`, the split behind most scores near 100 % on
overlapping windows, exists to show what it is worth; `audit` finds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg.table import Windows

Rows = NDArray[np.int64]
PROTOCOLS = ("within-session", "cross-session", "cross-subject", "adaptable")
LEAKY = "random-windows"


@dataclass(frozen=True)
class Fold:
    """One split.

    Attributes:
        name: what is tested, such as ``subjectb`` or ``subjectb/2``.
        train, test: ascending row numbers.
    """

    name: str
    train: Rows
    test: Rows


def cross_subject(windows: Windows, max_folds: int = 20) -> list[Fold]:
    """Leave one subject out; with more than `max_folds` subjects, leave groups of subjects out.

    Raises:
        InputError: with fewer than two subjects.
    """
    subjects = _some(windows.subject, 2, "cross-subject", "subjects")
    groups = np.array_split(subjects, min(len(subjects), max_folds))
    return _folds(windows, [("+".join(group), np.isin(windows.subject, group), None) for group in groups], "cross-subject")


def cross_session(windows: Windows) -> list[Fold]:
    """For each subject, leave one session out and train on the subject's others.

    Raises:
        InputError: if no subject has two sessions.
    """
    plan = []
    for subject in np.unique(windows.subject):
        own = windows.subject == subject
        sessions = np.unique(windows.session[own])
        if len(sessions) > 1:
            plan += [
                (f"{subject}/{session}", own & (windows.session == session), own & (windows.session != session)) for session in sessions
            ]
    if not plan:
        raise InputError("cross-session needs a subject with two or more sessions")
    return _folds(windows, plan, "cross-session")


def within_session(windows: Windows, folds: int = 5, embargo: int = 0) -> list[Fold]:
    """For each session, cut the windows of each state into contiguous blocks in the order of time; test one of each, train on the others.

    A block is only tested on states that have two or more training windows left beside it, and not at all where fewer than two states
    have: a session that shows one state, or shows each too briefly, costs its own windows and not the run.

    Args:
        windows: N windows.
        folds: blocks per state.
        embargo: further raw samples kept free between training and test windows, beside not sharing one.
    """
    plan = []
    for name in np.unique(windows.person_session):
        own = windows.person_session == name
        block = np.full(len(windows), -1)
        for state in np.unique(windows.y[own]):
            rows = np.flatnonzero(own & (windows.y == state))
            block[rows] = np.arange(len(rows)) * folds // len(rows) if len(rows) >= folds else np.arange(len(rows))
        for fold in range(folds):
            test = own & (block == fold)
            train = own & (block != fold)
            train[train] = ~overlapping(windows, np.flatnonzero(train), np.flatnonzero(test), embargo)
            kept = np.flatnonzero(np.bincount(windows.y[train]) >= 2)
            if len(kept) >= 2:
                plan.append((f"{name}#{fold + 1}", test & np.isin(windows.y, kept), train))
    if not any(test.any() for _, test, _ in plan):
        raise InputError(
            "within-session: no fold keeps training windows of two states beside a test block; recordings are too short, or each session "
            "shows one state only"
        )
    return _folds(windows, plan, "within-session", embargo)


def adaptable(windows: Windows, calibration_s: float = 20.0, max_folds: int = 20) -> list[Fold]:
    """Leave one subject out, but train also on the first seconds of each of this subject's states, in the first session.

    Windows of the test subject that share a raw sample with the calibration are in neither part.

    Args:
        windows: N windows.
        calibration_s: labelled seconds of each state that the new subject gives.
        max_folds: see `cross_subject`.
    """
    subjects = _some(windows.subject, 2, "adaptable", "subjects")
    plan = []
    for group in np.array_split(subjects, min(len(subjects), max_folds)):
        own = np.isin(windows.subject, group)
        calibration = np.zeros(len(windows), dtype=bool)
        for subject in group:
            of_subject = windows.subject == subject
            first = of_subject & (windows.session == np.unique(windows.session[of_subject])[0])
            for state in np.unique(windows.y[first]):
                rows = np.flatnonzero(first & (windows.y == state))
                stretch = rows[windows.stretch[rows] == windows.stretch[rows[0]]]
                begin = windows.start[stretch].min()
                calibration[stretch[windows.stop[stretch] <= begin + calibration_s * windows.sfreq]] = True
        if not (calibration & own).any():
            raise InputError(f"adaptable: --calibration {calibration_s:g} s is shorter than one window")
        plan.append(("+".join(group), own & ~calibration, ~own | calibration))
    # Here the calibration is what must stay: test windows that overlap it go, not training windows.
    result = []
    for name, test, train in plan:
        rows = np.flatnonzero(test)
        rows = rows[~overlapping(windows, rows, np.flatnonzero(train & np.isin(windows.subject, name.split("+"))))]
        result.append(_checked(windows, Fold(name, np.flatnonzero(train), rows), "adaptable"))
    return result


def random_windows(windows: Windows, folds: int = 5, seed: int = 0) -> list[Fold]:
    """Random folds over windows. LEAKS: neighbours share raw samples, and every person is on both sides. For comparison only."""
    order = np.random.default_rng(seed).permutation(len(windows))
    parts = np.array_split(order, folds)
    return [Fold(f"random {index + 1}", np.sort(np.setdiff1d(order, part)), np.sort(part)) for index, part in enumerate(parts)]


def split(protocol: str, windows: Windows, *, folds: int = 5, calibration_s: float = 20.0, seed: int = 0) -> list[Fold]:
    """The folds of a protocol by name.

    Raises:
        InputError: for an unknown name, or data that the protocol cannot split.
    """
    if protocol == "cross-subject":
        return cross_subject(windows)
    if protocol == "cross-session":
        return cross_session(windows)
    if protocol == "within-session":
        return within_session(windows, folds)
    if protocol == "adaptable":
        return adaptable(windows, calibration_s)
    if protocol == LEAKY:
        return random_windows(windows, folds, seed)
    raise InputError(f"--protocol {protocol}: not known; choose from {', '.join(PROTOCOLS)}")


def inner_split(protocol: str, windows: Windows) -> list[tuple[Rows, Rows]]:
    """Folds inside a training set, for tuning: by the same protocol where the training set allows it, else contiguous blocks."""
    inner = {"adaptable": "cross-subject"}.get(protocol, protocol)
    try:
        folds = split(inner, windows, folds=3)
    except InputError:
        folds = within_session(windows, 3)
    return [(fold.train, fold.test) for fold in folds]


def overlapping(windows: Windows, rows: Rows, others: Rows, embargo: int = 0) -> NDArray[np.bool_]:
    """Which of `rows` share a raw sample with one of `others`, or come nearer than `embargo` samples; shape of `rows`."""
    result = np.zeros(len(rows), dtype=bool)
    for recording in np.unique(windows.recording[others]) if len(others) else ():
        mine = np.flatnonzero(windows.recording[rows] == recording)
        theirs = others[windows.recording[others] == recording]
        starts, stops = np.sort(windows.start[theirs]), np.sort(windows.stop[theirs])
        # Those that began before this one ended, less those that had ended before it began: the ones in conflict.
        begun = np.searchsorted(starts, windows.stop[rows[mine]] + embargo, side="left")
        ended = np.searchsorted(stops, windows.start[rows[mine]] - embargo, side="right")
        result[mine] = begun > ended
    return result


def _folds(
    windows: Windows, plan: list[tuple[str, NDArray[np.bool_], NDArray[np.bool_] | None]], protocol: str, embargo: int = 0
) -> list[Fold]:
    result = []
    for name, test, train in plan:
        test_rows, train_rows = np.flatnonzero(test), np.flatnonzero(~test if train is None else train)
        train_rows = train_rows[~overlapping(windows, train_rows, test_rows, embargo)]
        if len(test_rows):
            result.append(_checked(windows, Fold(name, train_rows, test_rows), protocol))
    return result


def _checked(windows: Windows, fold: Fold, protocol: str) -> Fold:
    missing = sorted(set(windows.y.tolist()) - set(windows.y[fold.train].tolist()))
    own = set(windows.y[fold.test].tolist())
    missing = [state for state in missing if state in own]
    if missing:
        names = ", ".join(windows.classes[state] for state in missing)
        raise InputError(
            f"{protocol}, fold {fold.name}: no training window of {names} is left; recordings are too short or too few for this protocol"
        )
    if len(np.unique(windows.y[fold.train])) < 2:
        names = ", ".join(windows.classes[state] for state in np.unique(windows.y[fold.train])) or "none"
        raise InputError(f"{protocol}, fold {fold.name}: the training windows show one state only ({names}); use another protocol")
    return fold


def _some(names: NDArray[np.str_], least: int, protocol: str, what: str) -> NDArray[np.str_]:
    found = np.unique(names)
    if len(found) < least:
        raise InputError(
            f"{protocol} needs {least} or more {what}, got {len(found)} ({', '.join(found)}); use within-session or cross-session"
        )
    return found
