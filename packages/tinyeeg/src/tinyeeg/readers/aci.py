"""The attention-state recordings of Aci, Kaya and Mishchenko (2019): MATLAB files ``eeg_record1.mat`` ... ``eeg_record34.mat``.

Each holds a struct ``o`` whose ``data`` has 25 columns at 128 Hz; columns 4-17 (1-based) are the 14 EPOC channels. Minutes
0-10 are focused, 10-20 unfocused, the rest drowsy, in every recording: elapsed time predicts the label, which no split
mends; `tinyeeg train` prints a time-only baseline beside every score. The headset was modified, so channel names may not be
scalp sites.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError

from tinyeeg.readers.emotiv import EPOC
from tinyeeg.readers.mat import read_struct
from tinyeeg.recording import Recording, Span

PROTOCOL_S = ((0.0, 600.0, "focused"), (600.0, 1200.0, "unfocused"), (1200.0, 1800.0, "drowsy"))
_FIRST_OF_SUBJECT = (1, 8, 15, 22, 29)  # record number of each subject's first session
_HABITUATION = 2  # first sessions of each subject, left out by the data set's users


def read_aci_mat(path: str | Path, *, uv_per_unit: float = 1.0, drowsy_until_s: float = 1800.0) -> Recording:
    """Read one recording.

    Args:
        path: ``eeg_recordN.mat``; N gives subject and session.
        uv_per_unit: microvolts per number in the file. Their steps of 0.5128 suggest microvolts (inferred; others multiply by 0.51).
        drowsy_until_s: end of the drowsy stretch, seconds; ten minutes by default, so that the three states are equally long.

    Raises:
        InputError: if this is no such file.
    """
    path = Path(path)
    try:
        path.open("rb").close()
        record = read_struct(path, "o", ("data", "sampFreq"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no recording of the Aci set (a struct 'o' with data and sampFreq): {error}") from error
    data = record["data"]
    if record["sampFreq"].size != 1:
        raise InputError(f"{path}: o.sampFreq has {record['sampFreq'].size} values; it is one number, in Hz")
    sfreq = float(np.squeeze(record["sampFreq"]))
    if data.ndim != 2 or data.shape[1] < 17:
        raise InputError(f"{path}: o.data has shape {data.shape}; the set has 25 columns, EEG in columns 4 to 17")
    number = re.search(r"(\d+)\D*$", path.stem)
    index = int(number[1]) if number else 1
    subject = int(np.searchsorted(_FIRST_OF_SUBJECT, index, side="right"))
    session = index - _FIRST_OF_SUBJECT[max(subject, 1) - 1] + 1
    n_times = len(data)
    spans = []
    for start_s, stop_s, state in PROTOCOL_S:
        stop_s = drowsy_until_s if state == "drowsy" else stop_s
        start, stop = round(start_s * sfreq), min(n_times, round(stop_s * sfreq))
        if stop > start:
            spans.append(Span(start, stop, state))
    short = n_times < round(1800 * sfreq)
    return Recording(
        signal=data[:, 3:17].T * uv_per_unit, sfreq=sfreq, channels=EPOC, spans=tuple(spans), name=path.name,
        subject=str(subject), session=str(session),
        role="habituation" if session <= _HABITUATION else "incomplete" if short else "",
        notes=(f"only {n_times / sfreq / 60:.1f} minutes",) if short else (),
    )  # fmt: skip
