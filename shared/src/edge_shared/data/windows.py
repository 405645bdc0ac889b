"""Fixed windows of a sampled stream, and the embargo between the windows of two parts.

Dimensions: T samples, C channels, N windows, L samples per window.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_shared.data.splits import Split, by_time
from edge_shared.errors import InputError


@dataclass(frozen=True)
class Windows:
    """Windows of one recording, in the order of time.

    Attributes:
        values: the samples, shape (N, L, C); a read-only view of the stream where the windows come from one segment.
        start: time of each window's first sample, seconds, shape (N,).
        end: time just after its last sample (start + length / rate), seconds, shape (N,).
        first: row of its first sample in the stream, shape (N,).
        segment: number of the gap-free segment that it lies in, shape (N,).
        rate: samples per second.
    """

    values: NDArray[Any]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    first: NDArray[np.int64]
    segment: NDArray[np.int64]
    rate: float

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> int:
        """Samples per window."""
        return self.values.shape[1]

    def select(self, rows: NDArray[Any]) -> Windows:
        """The windows of these rows (numbers or a mask)."""
        return Windows(self.values[rows], self.start[rows], self.end[rows], self.first[rows], self.segment[rows], self.rate)


def segments(times: ArrayLike, rate: float | None = None) -> tuple[list[slice], float]:
    """Cut a stream at its gaps.

    A step between 0.5 and 1.5 sample periods is a sample, a longer one a gap.

    Args:
        times: time of each sample in seconds, ascending, shape (T,).
        rate: samples per second; without it the median step tells.

    Returns:
        The gap-free segments and the rate.

    Raises:
        InputError: if time stands still or runs back, or the stream is not sampled at this rate (resample it first).
    """
    moments = np.asarray(times, dtype=np.float64)
    if moments.ndim != 1 or len(moments) < 2:
        raise InputError(f"times has shape {moments.shape}; a stream has one time per sample, at least two samples")
    if not np.isfinite(moments).all():
        raise InputError(f"times row {int(np.flatnonzero(~np.isfinite(moments))[0])} is not finite")
    steps = np.diff(moments)
    if (steps <= 0).any():
        row = int(np.flatnonzero(steps <= 0)[0]) + 1
        raise InputError(f"times row {row}: {moments[row]:g} s follows {moments[row - 1]:g} s; times must increase")
    if rate is None:
        rate = 1.0 / float(np.median(steps))
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"rate is {rate}; it is a number of samples per second above 0")
    periods = steps * rate
    inside = periods[periods < 1.5]
    if not len(inside) or (periods < 0.5).any() or abs(float(np.mean(inside)) - 1) > 0.05 or len(inside) < 0.5 * len(periods):
        raise InputError(f"times are irregular for {rate:g} Hz (steps of {steps.min():g} to {steps.max():g} s); resample the stream first")
    edges = [0, *(np.flatnonzero(periods >= 1.5) + 1).tolist(), len(moments)]
    return [slice(low, high) for low, high in pairwise(edges)], float(rate)


def sliding(times: ArrayLike, values: ArrayLike, *, seconds: float, step: float | None = None, rate: float | None = None) -> Windows:
    """Cut a stream into windows of equal length; no window crosses a gap.

    Args:
        times: time of each sample in seconds, shape (T,).
        values: samples, shape (T, C) or (T,).
        seconds: length of a window.
        step: distance between the starts of two windows in seconds; the length by default (no overlap).
        rate: samples per second; found from the times by default.

    Raises:
        InputError: irregular times (see `segments`), shapes that differ, samples that are not finite, a window shorter than
            one sample, or a stream without one whole window.
    """
    samples_TC = np.asarray(values)
    if samples_TC.ndim == 1:
        samples_TC = samples_TC[:, None]
    moments = np.asarray(times, dtype=np.float64)
    if samples_TC.ndim != 2 or len(samples_TC) != len(moments):
        raise InputError(f"values has shape {samples_TC.shape} for {moments.shape} times; give one row of channels per time")
    if samples_TC.dtype.kind == "f" and not np.isfinite(samples_TC).all():
        row, channel = (int(index[0]) for index in np.nonzero(~np.isfinite(samples_TC)))
        raise InputError(f"values row {row} channel {channel} is {samples_TC[row, channel]}; fill or cut it out first")
    pieces, rate = segments(moments, rate)
    length = _samples("seconds", seconds, rate)
    stride = length if step is None else _samples("step", step, rate)
    views, firsts, numbers = [], [], []
    for number, piece in enumerate(pieces):
        if piece.stop - piece.start < length:
            continue
        view_NCL = np.lib.stride_tricks.sliding_window_view(samples_TC[piece], length, axis=0)[::stride]
        views.append(view_NCL.transpose(0, 2, 1))
        firsts.append(piece.start + stride * np.arange(len(view_NCL)))
        numbers.append(np.full(len(view_NCL), number))
    if not views:
        longest = max(piece.stop - piece.start for piece in pieces)
        raise InputError(f"no window of {seconds:g} s fits: the longest stretch without a gap has {longest} samples, a window {length}")
    first = np.concatenate(firsts)
    return Windows(
        values=views[0] if len(views) == 1 else np.concatenate(views),
        start=moments[first],
        end=moments[first + length - 1] + 1 / rate,
        first=first,
        segment=np.concatenate(numbers),
        rate=rate,
    )


def pure_labels(windows: Windows, labels: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Label windows by their samples.

    Args:
        windows: N windows of a stream.
        labels: one label per sample of that stream, shape (T,).

    Returns:
        Which windows hold one label only, shape (N,), and each window's first label, shape (N,).
    """
    labels_T = np.asarray(labels)
    if labels_T.ndim != 1 or len(labels_T) < int(windows.first.max(initial=0)) + windows.length:
        raise InputError(f"labels has shape {labels_T.shape}; give one label per sample of the stream")
    changes_T = np.concatenate([[0], np.cumsum(labels_T[1:] != labels_T[:-1])])
    return changes_T[windows.first] == changes_T[windows.first + windows.length - 1], labels_T[windows.first]


def clear_of(windows: Windows, others: Windows, embargo: float = 0.0) -> NDArray[np.bool_]:
    """Tell which windows keep at least `embargo` seconds from every one of the others (same recording).

    Returns:
        A mask of shape (N,): false for a window that overlaps another or is nearer than the embargo.
    """
    if embargo < 0 or not np.isfinite(embargo):
        raise InputError(f"embargo is {embargo} s; it is 0 or more")
    if not len(others):
        return np.ones(len(windows), dtype=bool)
    slack = 1e-6 / windows.rate  # rounding of times, far below one sample
    starts, ends = np.sort(others.start), np.sort(others.end)
    # Others that begin before this one's end (plus embargo), less those that ended before its start: the ones in conflict.
    begun = np.searchsorted(starts, windows.end + embargo - slack, side="left")
    ended = np.searchsorted(ends, windows.start - embargo + slack, side="right")
    return begun == ended


def split_windows(windows: Windows, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), embargo: float = 0.0) -> Split:
    """Split windows by time; no sample is in two parts, and parts are at least `embargo` seconds apart.

    Windows of an earlier part that overlap a later part, or come too near, are dropped.
    """
    rough = by_time(windows.start, fractions)
    test = windows.select(rough.test)
    val_rows = rough.val[clear_of(windows.select(rough.val), test, embargo)]
    train = windows.select(rough.train)
    keep = clear_of(train, windows.select(rough.val), embargo) & clear_of(train, test, embargo)
    result = Split(rough.train[keep], val_rows, rough.test)
    for name, rows, before in zip(("train", "val"), result.parts, rough.parts, strict=False):
        if len(before) and not len(rows):
            raise InputError(f"the {name} part is empty after an embargo of {embargo:g} s; use a shorter one or other fractions")
    return result


def _samples(what: str, seconds: float, rate: float) -> int:
    count = round(seconds * rate) if np.isfinite(seconds) else 0
    if count < 1:
        raise InputError(f"{what} is {seconds} s, less than one sample at {rate:g} Hz")
    return count
