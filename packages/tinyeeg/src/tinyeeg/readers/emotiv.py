"""EMOTIV headsets: CSV files of EmotivPRO and of the older TestBench, and the UCI eye-state set that one recorded."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError

from tinyeeg.readers._csv import read_table, regular
from tinyeeg.recording import Recording, Span

EPOC = ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4")
RATE = 128.0  # Hz
_EYE_STATES = {1: "open", 2: "closed"}


def read_emotiv_csv(path: str | Path, *, state: str = "", sfreq: float | None = None) -> Recording:
    """Read an EMOTIV CSV export: columns ``AF3`` or ``EEG.AF3`` ..., an optional time column and metadata line.

    Args:
        path: the file.
        state: the state that holds throughout; empty for none.
        sfreq: sampling rate in Hz; by default the metadata line or the times decide, else 128.
    """
    path = Path(path)
    table = read_table(path, EPOC)
    known = {site.casefold(): site for site in (*EPOC, "Pz", "Fz", "Cz", "Oz", "Fp1", "Fp2", "C3", "C4", "CP5", "CP6")}
    columns: dict[str, int] = {}
    for index, name in enumerate(table.header):
        site = known.get(name.casefold().removeprefix("eeg.").removeprefix("eeg_"))
        if site:
            columns.setdefault(site, index)
    if not columns:
        raise InputError(f"{path}: no EMOTIV channel such as AF3 or EEG.AF3 in its header: {', '.join(table.header)[:200]}")
    told = re.search(r"sampling[^0-9]*?(?:eeg_)?(\d+)", " ".join(table.above), re.IGNORECASE)
    nominal = sfreq or (float(told[1]) if told else RATE)
    time_column = next((index for index, name in enumerate(table.header) if name.casefold() in ("timestamp", "time", "os_timestamp")), None)
    times = None if time_column is None else table.times(time_column)
    sampled = regular(path, times, np.stack([table.numbers(index) for index in columns.values()]), nominal)
    return Recording(
        signal=sampled.signal, sfreq=sampled.sfreq, channels=tuple(columns), gaps=sampled.gaps, gap_s=sampled.gap_s, name=path.name,
        spans=(Span(0, sampled.signal.shape[1], state),) if state else (),
        started=sampled.started if sampled.started and sampled.started > 1e8 else None, notes=sampled.notes,
    )  # fmt: skip


def read_eye_state_csv(path: str | Path) -> Recording:
    """Read the UCI EEG Eye State set as CSV: ``V1..V14`` (EPOC order), ``Class`` 1 open or 2 closed per sample.

    The four samples that are off by thousands of microvolts are replaced by the mean of their neighbours, as the notes of the
    recording say how many.
    """
    path = Path(path)
    table = read_table(path)
    if [name.casefold() for name in table.header] != [*(f"v{index}" for index in range(1, 15)), "class"]:
        raise InputError(f"{path}: the header of the eye-state set is V1,...,V14,Class")
    signal = np.stack([table.numbers(index) for index in range(14)])
    label = table.numbers(14).astype(int)
    far = np.abs(signal - np.median(signal, axis=1, keepdims=True)) > 1000
    for row, wrong in zip(signal, far, strict=True):
        row[wrong] = np.interp(np.flatnonzero(wrong), np.flatnonzero(~wrong), row[~wrong])
    edges = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
    spans = tuple(Span(low, high, _EYE_STATES.get(int(label[low]), str(label[low]))) for low, high in itertools.pairwise(edges))
    note = f"{int(far.any(axis=0).sum())} outlier samples interpolated"
    return Recording(signal, RATE, EPOC, spans, name=path.name, notes=(note,))
