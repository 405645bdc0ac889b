"""XDF files of LabRecorder (needs the `xdf` extra): the first EEG stream, markers as states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require

from tinyeeg.readers._csv import regular
from tinyeeg.recording import Recording, Span

_TO_UV = {"microvolts": 1.0, "uv": 1.0, "microvolt": 1.0, "volts": 1e6, "v": 1e6, "volt": 1e6, "millivolts": 1e3, "mv": 1e3}


def read_xdf(path: str | Path) -> Recording:
    """Read the first stream of type EEG; each marker's text holds until the next marker.

    Raises:
        InputError: if there is no EEG stream, or pyxdf is not installed.
    """
    require("pyxdf", "tinyeeg[xdf]")
    import pyxdf

    path = Path(path)
    try:
        streams, _ = pyxdf.load_xdf(str(path), verbose=False)
    except Exception as error:
        raise InputError(f"{path} is no readable XDF file: {error}") from error
    eeg = next((stream for stream in streams if _of(stream, "type").casefold() == "eeg" and len(stream["time_stamps"]) > 1), None)
    if eeg is None:
        found = ", ".join(f"{_of(stream, 'name')} ({_of(stream, 'type')})" for stream in streams)
        raise InputError(f"{path} has no stream of type EEG; it has {found or 'none'}")
    names, factors = _channels(eeg)
    signal = np.asarray(eeg["time_series"], dtype=np.float64).T * np.array(factors)[:, None]
    times = np.asarray(eeg["time_stamps"], dtype=np.float64)
    nominal = float(_of(eeg, "nominal_srate") or 0) or None
    sampled = regular(path, times, signal, nominal)
    marks = [
        (float(time), str(value[0]))
        for stream in streams
        if _of(stream, "type").casefold() == "markers"
        for time, value in zip(stream["time_stamps"], stream["time_series"], strict=True)
    ]
    marks.sort()
    spans = []
    stamps = np.arange(sampled.signal.shape[1]) / sampled.sfreq + times[0]
    for index, (time, text) in enumerate(marks):
        start = int(np.searchsorted(stamps, time))
        stop = int(np.searchsorted(stamps, marks[index + 1][0])) if index + 1 < len(marks) else len(stamps)
        if stop > start:
            spans.append(Span(start, stop, text))
    return Recording(
        sampled.signal, sampled.sfreq, tuple(names), tuple(spans), sampled.gaps, sampled.gap_s, name=path.name, notes=sampled.notes
    )


def _of(stream: Any, key: str) -> str:
    value = stream["info"].get(key)
    return str(value[0]) if isinstance(value, list) and value else str(value or "")


def _channels(stream: Any) -> tuple[list[str], list[float]]:
    count = int(_of(stream, "channel_count"))
    described = (stream["info"].get("desc") or [None])[0] or {}
    entries = ((described.get("channels") or [{}])[0] or {}).get("channel") or []
    if len(entries) != count:
        return [f"EEG{index + 1}" for index in range(count)], [1.0] * count
    names = [str((entry.get("label") or [f"EEG{index + 1}"])[0]) for index, entry in enumerate(entries)]
    factors = [_TO_UV.get(str((entry.get("unit") or ["microvolts"])[0]).casefold(), 1.0) for entry in entries]
    return names, factors
