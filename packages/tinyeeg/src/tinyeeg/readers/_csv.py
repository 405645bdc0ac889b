"""Reading sampled signals from CSV text: header, numbers, times, gaps, missing values."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_text
from numpy.typing import NDArray

USUAL_RATES = (128.0, 200.0, 220.0, 250.0, 256.0, 500.0, 512.0, 1000.0, 1024.0)  # Hz
LONGEST_FILL_S = 0.1  # missing values no longer than this are interpolated, longer ones become a gap


@dataclass(frozen=True)
class Table:
    """A CSV file as text: the lines above the header, column names, and the cells column by column."""

    path: Path
    above: list[str]
    header: list[str]
    rows: list[list[str]]
    first_line: int

    def text(self, column: int) -> list[str]:
        """The cells of one column, stripped; empty where a row is short."""
        return [row[column].strip() if column < len(row) else "" for row in self.rows]

    def numbers(self, column: int) -> NDArray[np.float64]:
        """The cells of one column as numbers; empty, ``nan`` and ``null`` cells become NaN.

        Raises:
            InputError: naming line and column of a cell that is no number.
        """
        cells = self.text(column)
        try:
            return np.array([cell if cell else "nan" for cell in cells], dtype=np.float64)
        except ValueError:
            pass
        values = np.empty(len(cells))
        for index, cell in enumerate(cells):
            try:
                values[index] = np.nan if cell.lower() in ("", "null", "none", "na", "-") else float(cell)
            except ValueError:
                raise InputError(
                    f"{self.path}:{self.first_line + index}: {cell[:30]!r} in column {self.header[column]!r} is no number"
                ) from None
        return values

    def times(self, column: int) -> NDArray[np.float64]:
        """A time column in seconds: seconds, milliseconds or microseconds, or dates and times of day such as ``2017-11-02 12:33:05.090``.

        Raises:
            InputError: naming line and column of a cell that is neither.
        """
        cells = self.text(column)
        sample = next((cell for cell in cells if cell), "")
        if ":" in sample or sample.count("-") == 2:
            values = np.full(len(cells), np.nan)
            for index, cell in enumerate(cells):
                if cell:
                    try:
                        values[index] = _seconds(cell)
                    except ValueError:
                        raise InputError(
                            f"{self.path}:{self.first_line + index}: {cell[:30]!r} in column {self.header[column]!r} is no time"
                        ) from None
            return values
        values = self.numbers(column)
        steps = np.diff(values[np.isfinite(values)])
        steps = steps[steps > 0]
        if len(steps) > 100:
            # An EEG headset gives 50 to 2000 samples per second; steps near 1-20 are then milliseconds, steps of thousands microseconds.
            step = float(np.median(steps))
            values = values / (1e6 if 450 <= step <= 20_000 else 1000 if 0.45 <= step <= 20 else 1)
        return values


def _seconds(text: str) -> float:
    """Unix seconds of a date, or seconds since midnight of a time of day.

    Raises:
        ValueError: if the text is neither.
    """
    text = text.replace("/", "-").replace("Z", "+00:00")
    if "-" not in text.split("+")[0]:
        clock = time.fromisoformat(text if text[1:2] != ":" else f"0{text}")
        return 3600.0 * clock.hour + 60.0 * clock.minute + clock.second + 1e-6 * clock.microsecond
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_table(path: Path, wanted: tuple[str, ...] = ()) -> Table:
    """Read a CSV file with ``,``, ``;`` or tab between its cells.

    Args:
        path: the file.
        wanted: words of which the header line holds some; lines above it are metadata. Empty: the first line is the header.

    Raises:
        InputError: if the file is empty, no text, or holds no data line.
    """
    lines = read_text(path, "CSV file").lstrip("\ufeff").splitlines()
    if not lines:
        raise InputError(f"{path} is empty")
    head = 0
    if wanted:
        counts = [sum(word.casefold() in line.casefold() for word in wanted) for line in lines[:5]]
        head = int(np.argmax(counts))
    delimiter = max(",;\t", key=lines[head].count)
    rows = [row for row in csv.reader(lines[head:], delimiter=delimiter) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise InputError(f"{path} holds a header but no samples")
    return Table(path, lines[:head], [name.strip().strip('"') for name in rows[0]], rows[1:], head + 2)


@dataclass(frozen=True)
class Sampled:
    """Samples on a regular grid, piece after piece.

    Attributes:
        signal: shape (C, T).
        sfreq: Hz.
        gaps: sample numbers that follow a gap.
        gap_s: their lengths in seconds.
        started: time of the first sample.
        notes: what was repaired.
    """

    signal: NDArray[np.float64]
    sfreq: float
    gaps: tuple[int, ...]
    gap_s: tuple[float, ...]
    started: float | None
    notes: tuple[str, ...]


def regular(path: Path, times_T: NDArray[np.float64] | None, signal_CT: NDArray[np.float64], nominal: float | None) -> Sampled:
    """Make a gap-free grid per piece out of stamped samples.

    Headset stamps come in two kinds. Regular stamps (nine steps of ten near the median) tell each lost sample: a hole of up to
    0.25 s is interpolated, a longer one is a gap. Stamps in bursts (radio packets) tell only the mean rate: a step above 1 s
    is a gap. So is a step back by as much; samples that are out of order by less are sorted where the stamps are regular, and rows that
    repeat the one before are left out. Missing values of up to 0.1 s are interpolated, longer ones cut out as a gap.

    Args:
        path: for messages.
        times_T: seconds, or None if the file has no times (then `nominal` must be given).
        signal_CT: microvolts with NaN where values are missing.
        nominal: sampling rate that the device is known for, Hz.

    Raises:
        InputError: if no rate can be found or nothing is left.
    """
    notes: list[str] = []
    present = np.isfinite(signal_CT).any(axis=0)
    if times_T is not None:
        present &= np.isfinite(times_T)
    signal_CT = signal_CT[:, present]
    if signal_CT.shape[1] < 2:
        raise InputError(f"{path} holds fewer than two samples")
    sfreq, times, steady, gap_after = nominal or 0.0, None, False, np.zeros(signal_CT.shape[1] - 1, dtype=bool)
    if times_T is not None:
        times = times_T[present]
        kept = _not_repeated(times, signal_CT)
        if not kept.all():
            notes.append(f"{int((~kept).sum())} repeated rows left out")
            times, signal_CT = times[kept], signal_CT[:, kept]
        steps = np.diff(times)
        forward = steps[steps > 0]
        if not len(forward):
            if nominal is None or signal_CT.shape[1] < nominal:
                raise InputError(f"{path}: its times do not move; they must be seconds, milliseconds or dates that increase")
            notes.append(f"its times do not move; taken as {nominal:g} Hz")
            times, gap_after = None, np.zeros(signal_CT.shape[1] - 1, dtype=bool)
        else:
            typical = float(np.median(forward))
            steady = float(np.mean((steps > 0.5 * typical) & (steps < 1.5 * typical))) >= 0.9
            longest = 0.25 if steady else 1.0
            gap_after = (steps < -longest) | (steps > max(longest, 3 * typical))
            near = ~gap_after
            inside = float(np.mean(steps[near & (steps < 1.5 * typical)])) if steady else float(np.sum(steps[near]) / max(1, near.sum()))
            sfreq = _usual(1 / inside, nominal)
    if sfreq <= 0:
        raise InputError(f"{path} has no time column and its sampling rate is not known; give --sfreq")
    edges = [0, *(np.flatnonzero(gap_after) + 1).tolist(), signal_CT.shape[1]]
    pieces: list[NDArray[np.float64]] = []
    lengths: list[float] = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        before = 0.0 if times is None or index == 0 else max(0.0, float(times[low] - times[low - 1]))
        piece = signal_CT[:, low:high]
        if times is not None and steady and high - low > 1:
            order = np.argsort(times[low:high], kind="stable")
            stamps, piece = times[low:high][order], piece[:, order]
            count = round((stamps[-1] - stamps[0]) * sfreq) + 1
            if (np.diff(stamps) > 1.5 / sfreq).any() and count > high - low:
                grid = stamps[0] + np.arange(count) / sfreq
                piece = np.stack([_interpolate(grid, stamps, row) for row in piece])
                notes.append(f"{count - (high - low)} lost samples interpolated")
        for part, lead in _cut_missing(piece, sfreq):
            pieces.append(part)
            lengths.append(before + lead)
            before = 0.0
    pieces_lengths = [(piece, length) for piece, length in zip(pieces, lengths, strict=True) if piece.shape[1]]
    if not pieces_lengths:
        raise InputError(f"{path}: every sample has a missing value")
    starts = np.cumsum([0, *(piece.shape[1] for piece, _ in pieces_lengths)])
    if len(pieces_lengths) > 1:
        notes.append(f"{len(pieces_lengths) - 1} gaps, the longest {max(length for _, length in pieces_lengths[1:]):.1f} s")
    return Sampled(
        signal=np.concatenate([piece for piece, _ in pieces_lengths], axis=1),
        sfreq=sfreq,
        gaps=tuple(int(start) for start in starts[1:-1]),
        gap_s=tuple(length for _, length in pieces_lengths[1:]),
        started=None if times is None else float(times[0]),
        notes=tuple(notes),
    )


def _not_repeated(times: NDArray[np.float64], signal_CT: NDArray[np.float64]) -> NDArray[np.bool_]:
    """False for rows with the stamp and the values of the row before.

    Stamps of radio packets repeat by nature, and a saturated headset repeats its values: where stamps repeat often, rows are only left
    out if nearly all of those repeats have equal values and the others do not.
    """
    stamps = np.diff(times) == 0
    values = (np.diff(signal_CT, axis=1) == 0).all(axis=0)
    often = stamps.mean() > 0.3 and not (values[stamps].mean() > 0.95 and values[~stamps].mean() < 0.5)
    return np.concatenate([[True], ~(stamps & values & (not often))])


def _interpolate(grid: NDArray[np.float64], stamps: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(row)
    if not known.any():
        return np.full(len(grid), np.nan)
    # A grid point next to a missing sample only is missing too; `_cut_missing` decides about it.
    return np.where(np.interp(grid, stamps, ~known) == 1, np.nan, np.interp(grid, stamps[known], row[known]))


def _usual(rate: float, nominal: float | None) -> float:
    """The device's rate if the measured one is within 8 % of it, else the nearest usual rate within 4 %, else the measured one."""
    if nominal is not None and abs(rate / nominal - 1) < 0.08:
        return nominal
    nearest = min(USUAL_RATES, key=lambda usual: abs(usual / rate - 1))
    return nearest if abs(nearest / rate - 1) < 0.04 else round(rate, 2)


def _cut_missing(piece: NDArray[np.float64], sfreq: float) -> list[tuple[NDArray[np.float64], float]]:
    """Interpolate short runs of missing values, cut the piece at long ones; each part comes with the seconds lost before it."""
    missing = ~np.isfinite(piece)
    if not missing.any():
        return [(piece, 0.0)]
    piece, limit = piece.copy(), max(1, round(LONGEST_FILL_S * sfreq))
    cut = np.zeros(piece.shape[1], dtype=bool)
    positions = np.arange(piece.shape[1])
    for row, holes in zip(piece, missing, strict=True):
        if not holes.any():
            continue
        known = ~holes
        if not known.any():
            return []
        for low, high in _runs(holes):
            if high - low > limit or low == 0 or high == len(row):
                cut[low:high] = True
        row[holes] = np.interp(positions[holes], positions[known], row[known])
    parts, lost = [], 0
    for low, high, bad in _labelled_runs(cut):
        if bad:
            lost = high - low
        else:
            parts.append((piece[:, low:high], lost / sfreq))
            lost = 0
    return parts


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(low, high) for low, high, value in _labelled_runs(mask) if value]


def _labelled_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int, bool]]:
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return [(low, high, bool(mask[low])) for low, high in itertools.pairwise(edges)]
