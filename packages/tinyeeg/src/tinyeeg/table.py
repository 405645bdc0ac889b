"""Feature vectors of many recordings with what a split must know about each: who, when, and which raw samples it saw.

Features are causal and hold no fitted number, so computing them before a split leaks nothing; what can leak are shared raw
samples, which `start` and `stop` record.

Dimensions: N windows, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg import filters
from tinyeeg.chain import Chain
from tinyeeg.recording import Recording


@dataclass(frozen=True)
class Windows:
    """Where N feature vectors come from.

    Attributes:
        y: index of the state, shape (N,).
        classes: names of the states.
        subject, session, recording: names, shape (N,); session names are unique per subject, recording is the file's fingerprint.
        stretch: number of the gap-free, one-state stretch that a window was cut from, shape (N,).
        start, stop: raw samples of its recording that it depends on, ``start <= i < stop``, shape (N,).
        minutes: time since the subject's session began, shape (N,); what a clock alone could know.
        sfreq: samples per second.
    """

    y: NDArray[np.int64]
    classes: tuple[str, ...]
    subject: NDArray[np.str_]
    session: NDArray[np.str_]
    recording: NDArray[np.str_]
    stretch: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    minutes: NDArray[np.float64]
    sfreq: float

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[Any]) -> Windows:
        """The windows of these rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _PER_ROW})

    @property
    def person_session(self) -> NDArray[np.str_]:
        """Subject and session as one name, shape (N,)."""
        return np.char.add(np.char.add(self.subject, "/"), self.session)


_PER_ROW = ("y", "subject", "session", "recording", "stretch", "start", "stop", "minutes")


@dataclass(frozen=True)
class Table:
    """Features and their origin.

    Attributes:
        X: decibels, shape (N, F).
        windows: origin of each row.
        chain: what computed them.
        notes: odd things that the recordings' readers saw, one line each.
        synthetic: True if any recording is generated.
        fingerprint: hash over all recordings.
    """

    X: NDArray[np.float64]
    windows: Windows
    chain: Chain
    notes: tuple[str, ...]
    synthetic: bool
    fingerprint: str


def common_channels(recordings: Sequence[Recording]) -> tuple[str, ...]:
    """Channels that all recordings have and that are not constant in most of them, in the order of the first.

    Raises:
        InputError: if there is none.
    """
    shared = [name for name in recordings[0].channels if all(name in recording.channels for recording in recordings)]
    alive = [
        name for name in shared if np.median([np.ptp(recording.signal[recording.channels.index(name)]) > 0 for recording in recordings]) > 0
    ]
    if not alive:
        names = "; ".join(sorted({", ".join(recording.channels) for recording in recordings})[:4])
        raise InputError(f"the recordings share no channel: {names}")
    return tuple(alive)


def common_rate(recordings: Sequence[Recording]) -> float:
    """The sampling rate that most recordings have."""
    rates, counts = np.unique([recording.sfreq for recording in recordings], return_counts=True)
    return float(rates[np.argmax(counts)])


def extract(recordings: Sequence[Recording], chain: Chain) -> Table:
    """Compute the features of all labelled stretches; the chain restarts at each gap and each change of state.

    Args:
        recordings: any number, resampled to the chain's rate and reduced to its channels where they differ.
        chain: what to compute.

    Raises:
        InputError: no labels, fewer than two states, or no stretch as long as one segment.
    """
    return _gathered(recordings, chain, chain.features, chain.look_back)


def raw_windows(recordings: Sequence[Recording], chain: Chain) -> Table:
    """Cut the filtered samples of all labelled stretches into windows, for models that take samples instead of features.

    Args:
        recordings: see `extract`.
        chain: gives rate, channels, filters, and length and hop of the windows; the rest of it is not used.

    Returns:
        A table whose X holds microvolts, shape (N, C, L).
    """

    def windows(x_CT: NDArray[np.float64]) -> NDArray[np.float64]:
        if chain.n_frames(x_CT.shape[1]) == 0:
            return np.zeros((0, len(x_CT), chain.segment))
        filtered, _ = filters.apply(chain.sections, x_CT - x_CT[:, :1])
        return np.lib.stride_tricks.sliding_window_view(filtered, chain.segment, axis=-1)[:, :: chain.hop].transpose(1, 0, 2)

    return _gathered(recordings, chain, windows, chain.segment)


def _gathered(
    recordings: Sequence[Recording], chain: Chain, compute: Callable[[NDArray[np.float64]], NDArray[np.float64]], look_back: int
) -> Table:
    from hashlib import sha256

    states = sorted({span.state for recording in recordings for span in recording.stretches()})
    if len(states) < 2:
        raise InputError(
            f"the recordings name {len(states)} state{'s' if len(states) != 1 else ''} ({', '.join(states) or 'none'}); classification "
            "needs two or more: as annotations, or in file names such as subjecta-focused-1.csv (--pattern)"
        )
    origin = _origins(recordings)
    blocks: list[NDArray[np.float64]] = []
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in _PER_ROW}
    number = 0
    notes = []
    for recording in recordings:
        notes += [f"{recording.name}: {note}" for note in recording.notes]
        if abs(recording.sfreq - chain.sfreq) > 1e-6 * chain.sfreq:
            recording = recording.resampled(chain.sfreq)
            notes.append(f"{recording.name}: {recording.notes[-1]}")
        recording = recording.pick(chain.channels)
        for stretch in recording.stretches():
            features = compute(recording.signal[:, stretch.start : stretch.stop])
            count = len(features)
            if not count:
                continue
            stop = stretch.start + chain.segment + chain.hop * np.arange(count)
            blocks.append(features)
            rows["y"].append(np.full(count, states.index(stretch.state)))
            rows["subject"].append(np.full(count, recording.subject))
            rows["session"].append(np.full(count, recording.session))
            rows["recording"].append(np.full(count, recording.fingerprint))
            rows["stretch"].append(np.full(count, number))
            rows["start"].append(np.maximum(stretch.start, stop - look_back))
            rows["stop"].append(stop)
            rows["minutes"].append((recording.time_of(stop) + _offset(recording, origin)) / 60)
            number += 1
    if not blocks:
        raise InputError(f"no labelled stretch is as long as one segment of {chain.segment / chain.sfreq:g} s")
    windows = Windows(classes=tuple(states), sfreq=chain.sfreq, **{name: np.concatenate(parts) for name, parts in rows.items()})
    found = sorted(set(windows.y.tolist()))
    if len(found) < 2:
        raise InputError(f"only {states[found[0]]!r} has a stretch as long as one segment of {chain.segment / chain.sfreq:g} s")
    return Table(
        X=np.concatenate(blocks),
        windows=windows,
        chain=chain,
        notes=tuple(notes),
        synthetic=any(recording.synthetic for recording in recordings),
        fingerprint=sha256("".join(sorted(recording.fingerprint for recording in recordings)).encode()).hexdigest()[:16],
    )


def _origins(recordings: Sequence[Recording]) -> dict[tuple[str, str], float]:
    """When each (subject, session) began, for recordings that know their time."""
    origin: dict[tuple[str, str], float] = {}
    for recording in recordings:
        if recording.started is not None:
            key = (recording.subject, recording.session)
            origin[key] = min(origin.get(key, recording.started), recording.started)
    return origin


def _offset(recording: Recording, origin: dict[tuple[str, str], float]) -> float:
    if recording.started is None:
        return 0.0
    return recording.started - origin[(recording.subject, recording.session)]
