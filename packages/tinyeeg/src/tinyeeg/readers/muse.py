"""Muse headbands: CSV files of muse-lsl and of the Mind Monitor app.

muse-lsl writes ``timestamps,TP9,AF7,AF8,TP10,Right AUX`` (unix seconds, microvolts, 256 Hz); Mind Monitor writes dates, band
powers, ``RAW_TP9 ...`` and rows that hold only a marker such as a blink.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError

from tinyeeg.readers._csv import Table, read_table, regular
from tinyeeg.recording import Recording, Span

RATE = 256.0  # Hz; the Muse of 2014 gave 220, which its times tell
HEADSET = ("TP9", "AF7", "AF8", "TP10")
_TIME = re.compile(r"time.?stamps?|time|timestamp.*|t|unix.*|datetime", re.IGNORECASE)
_SITE = re.compile(
    r"(?:(?:raw|eeg)[-_ .]?)*((?:AF|FP|FC|FT|CP|TP|PO|F|C|T|P|O|A)(?:Z|\d{1,2}))(?:[-_ .]?(?:raw|eeg))?[-_ ]?[(\[]?(?:[uµμm]?v|microvolts?)?[)\]]?",
    re.IGNORECASE,
)
_EXTRA = re.compile(
    r"aux|acc|gyro|batt|head|hsi|element|marker|label|state|class|event|index|unnamed|ppg|delta|theta|alpha|beta|gamma"
    r"|sample|counter|packet|number|seq|quality|contact|elapsed|temp|blink|jaw|subject|session|trial|optics",
    re.IGNORECASE,
)


def read_muse_csv(path: str | Path, *, state: str = "", sfreq: float | None = None) -> Recording:
    """Read a muse-lsl or Mind Monitor CSV file.

    Args:
        path: the file.
        state: the state that holds throughout; empty for none.
        sfreq: sampling rate in Hz if the file has no times; its times decide otherwise.

    Returns:
        Microvolts of the EEG sites (auxiliary inputs, motion and band powers are left out); gaps marked.

    Raises:
        InputError: naming file, line and column of what cannot be read.
    """
    path = Path(path)
    table = read_table(path)
    if _is_number(table.header[0]) and len(table.header) >= 5:
        # No header line: the order of muse-lsl.
        names = ["timestamps", *HEADSET, *(f"aux{index}" for index in range(len(table.header) - 5))]
        table = Table(path, [], names, [table.header, *table.rows], 1)
    time_column = next((index for index, name in enumerate(table.header) if _TIME.fullmatch(name)), None)
    columns = _eeg_columns(table, time_column)
    times = None if time_column is None else table.times(time_column)
    signal = np.stack([table.numbers(index) for index in columns.values()])
    keep = np.isfinite(signal).mean(axis=1) > 0.5 * np.isfinite(signal).any(axis=0).mean()
    notes = [f"channel {name} left out: more than half of it is missing" for name, good in zip(columns, keep, strict=True) if not good]
    if not keep.any():
        raise InputError(f"{path}: the EEG columns {', '.join(columns)} hold no numbers")
    sampled = regular(path, times, signal[keep], RATE if sfreq is None else sfreq)
    microvolts = sampled.signal
    if 0 < float(np.median(np.std(microvolts, axis=1))) < 1e-2:
        microvolts = microvolts * 1e6
        notes.append("taken as volts and converted to microvolts")
    notes += [
        f"channel {name} is constant" for name, row in zip(np.array(list(columns))[keep], microvolts, strict=True) if np.ptp(row) == 0
    ]
    return Recording(
        signal=microvolts,
        sfreq=sampled.sfreq,
        channels=tuple(np.array(list(columns))[keep].tolist()),
        spans=(Span(0, microvolts.shape[1], state),) if state else (),
        gaps=sampled.gaps,
        gap_s=sampled.gap_s,
        name=path.name,
        started=sampled.started if sampled.started and sampled.started > 1e8 else None,
        notes=(*notes, *sampled.notes),
    )


def _eeg_columns(table: Table, time_column: int | None) -> dict[str, int]:
    """Names of EEG sites and their columns: raw ones where there are any, else every numeric column that is nothing else."""
    raw = {name: index for index, name in enumerate(table.header) if name.lower().startswith(("raw_", "raw ", "eeg.", "eeg_"))}
    candidates = raw or {name: index for index, name in enumerate(table.header)}
    sites: dict[str, int] = {}
    for name, index in candidates.items():
        match = _SITE.fullmatch(name)
        if match and index != time_column:
            sites.setdefault(_spelling(match[1]), index)
    if sites:
        return sites
    others = {name: index for index, name in enumerate(table.header) if index != time_column and name and not _EXTRA.search(name)}
    if len(others) >= 1 and all(_mostly_numbers(table, index) for index in others.values()):
        return others
    raise InputError(f"{table.path}: no EEG column such as TP9 or RAW_TP9 in its header: {', '.join(table.header)[:200]}")


def _spelling(site: str) -> str:
    """``fpz`` -> ``Fpz``, ``af7`` -> ``AF7``, as MNE's montages write it."""
    site = site.upper()
    return site.replace("FP", "Fp").replace("Z", "z")


def _mostly_numbers(table: Table, column: int) -> bool:
    cells = table.text(column)[:50]
    return sum(_is_number(cell) for cell in cells) > 0.8 * len(cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
