"""Files to recordings.

`read`          one file of any known format, as a `Recording`
`read_raw`      the same as an MNE `Raw`
`read_folder`   all recordings of a folder; names give subject, state and session; copies are found by content
`muse`, `emotiv`, `aci`, `xdf`   one file each; EDF, BDF, BrainVision, EEGLAB and FIF are read by MNE
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_shared.errors import InputError

from tinyeeg.bids import SYNTHETIC, is_bids, read_bids
from tinyeeg.recording import Recording, Span

if TYPE_CHECKING:
    from mne.io import BaseRaw

# subjecta-concentrating-1.csv, subject3-eyes_open-2.csv, S1-relaxed.csv, sub-03_rest_2.edf; a name that does not match gives no state.
# A subject is one word, with `sub-`, `subject_` ... before it or not; a state holds a letter; a number at the end is the session.
PATTERN = (
    r"(?P<subject>(?:(?:subject|subj|sub|participant|person|user|s|p)[-_ ]?)?[^-_ ]+)[-_ ]"
    r"(?P<state>(?=[\d\W_]*[^\W\d_]).+?)(?:[-_ ]*(?P<session>\d+))?"
)
MNE_SUFFIXES = (".edf", ".bdf", ".gdf", ".vhdr", ".set", ".fif", ".fif.gz", ".cnt", ".egi", ".mff", ".nedf")
SUFFIXES = (".csv", ".mat", ".xdf", *MNE_SUFFIXES)


def identify(stem: str, pattern: str = PATTERN) -> dict[str, str]:
    """Subject, state and session from a file name without its ending; empty if the name does not fit the pattern.

    Args:
        stem: such as ``subjecta-concentrating-1``.
        pattern: regular expression for the whole name with the groups ``subject``, ``state`` and ``session`` (any may be absent).
    """
    try:
        match = re.fullmatch(pattern, stem, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"--pattern {pattern!r} is no regular expression: {error}") from error
    return {key: value for key, value in match.groupdict().items() if value} if match else {}


def read(path: str | Path, *, sfreq: float | None = None) -> Recording:
    """Read one recording of any known format; the format follows from the ending and, for CSV, from the header.

    Args:
        path: the file.
        sfreq: sampling rate in Hz for CSV files without times.

    Raises:
        InputError: for an unknown ending or an unreadable file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if suffix == ".csv":
        return _csv_reader(path)(path, sfreq)
    if suffix == ".mat":
        from tinyeeg.readers.aci import read_aci_mat

        return read_aci_mat(path)
    if suffix == ".xdf":
        from tinyeeg.readers.xdf import read_xdf

        return read_xdf(path)
    if path.name.lower().endswith(MNE_SUFFIXES):
        import mne

        try:
            raw = mne.io.read_raw(path, preload=True, verbose="error")
        except Exception as error:
            raise InputError(f"{path}: MNE cannot read it: {error}") from error
        return Recording.from_raw(raw, name=path.name)
    raise InputError(f"{path}: unknown ending {suffix!r}; known are {', '.join(SUFFIXES)}")


def read_raw(path: str | Path, *, sfreq: float | None = None) -> BaseRaw:
    """Read one recording as an MNE `Raw` in volts, its states as annotations."""
    return read(path, sfreq=sfreq).to_raw()


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        recordings: one per different content, in the order of their names.
        copies: (file left out, file that it is a copy of).
        left_out: (file, why) of habituation sessions and incomplete recordings.
    """

    recordings: tuple[Recording, ...]
    copies: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]


def read_folder(
    folder: str | Path, *, pattern: str = PATTERN, sfreq: float | None = None, suffixes: tuple[str, ...] = SUFFIXES, all_roles: bool = False
) -> Folder:
    """Read all recordings below a folder.

    A folder with a ``dataset_description.json`` is read as BIDS; one with a file SYNTHETIC.txt gives recordings that are marked so. A file
    name that fits `pattern` gives subject, session and, if the file has no labels of its own, the state throughout.

    Args:
        folder: looked through with its subfolders; a single file is fine too.
        pattern: see `identify`.
        sfreq: sampling rate in Hz for CSV files without times.
        suffixes: endings to read.
        all_roles: keep habituation sessions and incomplete recordings, which are left out otherwise.

    Raises:
        InputError: if the folder holds no recording, or a file cannot be read.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder}: no such file or folder")
    if folder.is_dir() and is_bids(folder):
        synthetic = (folder / SYNTHETIC).exists()
        return _without_copies([(recording.name, replace(recording, synthetic=synthetic)) for recording in read_bids(folder)], all_roles)
    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.name.lower().endswith(suffixes))
    if not paths:
        raise InputError(f"{folder} holds no recording; looked for *{', *'.join(suffixes)}")
    found: list[tuple[str, Recording]] = []
    left_out: list[tuple[str, str]] = []
    synthetic = folder.is_dir() and (folder / SYNTHETIC).exists()
    parsed = {path: identify(_stem(path), pattern) for path in paths}
    named = {path for path, parts in parsed.items() if "state" in parts}
    numbered = any("session" in parts for parts in parsed.values())
    for path in paths:
        if path.suffix.lower() == ".csv" and named and path not in named:
            # Beside recordings named by the pattern, other tables (features, logs) are no recordings.
            left_out.append((path.name, "its name does not fit the pattern"))
            continue
        try:
            recording = replace(_named(read(path, sfreq=sfreq), path, pattern), synthetic=synthetic)
        except InputError as error:
            # mental-state.csv, a table of features, looks like a name too; subjecta-relaxed-1.csv beside it tells what recordings are called.
            if path.suffix.lower() != ".csv" or not numbered or "session" in parsed[path]:
                raise
            left_out.append((path.name, str(error)))
            continue
        found.append((str(path.relative_to(folder)) if folder.is_dir() else path.name, recording))
    result = _without_copies(found, all_roles)
    return replace(result, left_out=(*left_out, *result.left_out))


def _without_copies(found: list[tuple[str, Recording]], all_roles: bool) -> Folder:
    kept: dict[str, Recording] = {}
    copies, left_out = [], []
    for name, recording in found:
        if recording.fingerprint in kept:
            copies.append((name, kept[recording.fingerprint].name))
        elif recording.role and not all_roles:
            left_out.append((recording.name, recording.role))
        else:
            kept[recording.fingerprint] = recording
    if not kept:
        raise InputError("every recording is a habituation session or incomplete; --all-sessions keeps them")
    return Folder(_one_spelling(list(kept.values())), tuple(copies), tuple(left_out))


def _one_spelling(recordings: list[Recording]) -> tuple[Recording, ...]:
    """Relaxed and relaxed are one state, SubjectA and subjecta one person: the spelling that comes first holds, with a note."""
    spelling: dict[str, str] = {}
    result = []
    for recording in recordings:
        states = {span.state: spelling.setdefault(f"state {span.state.casefold()}", span.state) for span in recording.spans}
        subject = spelling.setdefault(f"subject {recording.subject.casefold()}", recording.subject)
        notes = tuple(f"read as {new}, not {old}" for old, new in [(recording.subject, subject), *states.items()] if old != new)
        spans = tuple(replace(span, state=states[span.state]) for span in recording.spans)
        result.append(replace(recording, subject=subject, spans=spans, notes=(*recording.notes, *notes)) if notes else recording)
    return tuple(result)


def _named(recording: Recording, path: Path, pattern: str) -> Recording:
    found = {} if path.suffix.lower() == ".mat" else identify(_stem(path), pattern)
    whole = "state" in found and not recording.has_stretches
    spans = (Span(0, recording.n_times, found["state"]),) if whole else recording.held().spans
    return replace(recording, subject=found.get("subject", recording.subject), session=found.get("session", recording.session), spans=spans)


def _stem(path: Path) -> str:
    """The name without its ending, nor the ``_raw`` or ``_eeg`` that MNE wants before it."""
    return re.sub(r"([-_](raw|eeg))?(\.fif)?\.[^.]*$", "", path.name, flags=re.IGNORECASE)


def _csv_reader(path: Path) -> Callable[[Path, float | None], Recording]:
    from tinyeeg.readers import emotiv, muse

    try:
        with path.open(encoding="utf-8-sig") as file:
            head = "".join(file.readline() for _ in range(3)).casefold()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error
    if head.startswith("v1,v2,v3"):
        return lambda path, sfreq: emotiv.read_eye_state_csv(path)
    if "af3" in head and "fc5" in head:
        return lambda path, sfreq: emotiv.read_emotiv_csv(path, sfreq=sfreq)
    return lambda path, sfreq: muse.read_muse_csv(path, sfreq=sfreq)
