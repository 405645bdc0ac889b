"""Recordings to and from a BIDS folder by mne-bids (needs the extra `bids`): BrainVision files, states as events."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edge_shared.errors import InputError, require
from edge_shared.files import write_text

from tinyeeg.recording import Recording

LINE_HZ = 50.0  # what the sidecar says of the mains; nothing is filtered by it
SYNTHETIC = "SYNTHETIC.txt"


def is_bids(folder: str | Path) -> bool:
    """Whether a folder says that it is a BIDS data set."""
    return (Path(folder) / "dataset_description.json").is_file()


def write_bids(folder: str | Path, recordings: Sequence[Recording], *, task: str = "attention", line_hz: float = LINE_HZ) -> list[Path]:
    """Write recordings as ``sub-X/ses-Y/eeg/sub-X_ses-Y_task-attention_run-N_eeg.vhdr`` with their sidecars.

    States become events with their duration, gaps events named ``BAD_gap``; letters and digits of the names of people and sessions are
    kept. Synthetic recordings are said to be so in SYNTHETIC.txt, which `.bidsignore` names.

    Args:
        folder: written to; runs that are there already are replaced.
        recordings: any number.
        task: what the people did.
        line_hz: mains frequency at the place of the recording.

    Returns:
        The ``.vhdr`` files.

    Raises:
        InputError: two people or sessions whose names differ in signs only.
    """
    require("mne_bids", "tinyeeg[bids]")
    from mne_bids import BIDSPath, make_dataset_description, write_raw_bids

    folder = Path(folder)
    labels = {name: _label(name) for recording in recordings for name in (recording.subject, recording.session)}
    for kind in ("subject", "session"):
        names = {getattr(recording, kind) for recording in recordings}
        if len({labels[name] for name in names}) < len(names):
            raise InputError(f"{kind} names differ in signs only, which BIDS does not allow: {', '.join(sorted(names))}")
    runs: Counter[tuple[str, str]] = Counter()
    written = []
    with _quiet():
        for recording in recordings:
            key = (recording.subject, recording.session)
            runs[key] += 1
            path = BIDSPath(
                subject=labels[key[0]], session=labels[key[1]], task=_label(task), run=f"{runs[key]:02d}", datatype="eeg", root=folder
            )
            raw = recording.to_raw()
            with raw.info._unlock():
                raw.info["line_freq"], raw.info["subject_info"] = line_hz, None
            write_raw_bids(raw, path, format="BrainVision", allow_preload=True, overwrite=True, verbose="error")
            written.append(path.copy().update(suffix="eeg", extension=".vhdr").fpath)
        make_dataset_description(path=folder, name=f"tinyeeg {task}", overwrite=True, verbose="error")
    if any(recording.synthetic for recording in recordings):
        write_text(folder / SYNTHETIC, "These recordings are synthetic: made by tinyeeg, not measured on a person.\n")
        write_text(folder / ".bidsignore", f"{SYNTHETIC}\n")
    return written


def read_bids(folder: str | Path) -> list[Recording]:
    """Read all EEG recordings of a BIDS folder, events as states.

    Raises:
        InputError: if there is none, or mne-bids cannot read one.
    """
    require("mne_bids", "tinyeeg[bids]")
    from mne_bids import find_matching_paths, read_raw_bids

    folder = Path(folder)
    paths = find_matching_paths(folder, datatypes="eeg", suffixes="eeg", extensions=[".vhdr", ".edf", ".bdf", ".set"])
    recordings = []
    for path in sorted(paths, key=lambda found: str(found.fpath)):
        try:
            with _quiet():
                raw = read_raw_bids(path, verbose="error")
        except Exception as error:
            raise InputError(f"{path.fpath}: mne-bids cannot read it: {error}") from error
        recording = Recording.from_raw(raw, name=path.fpath.name, subject=path.subject or "1", session=path.session or "1")
        recordings.append(recording.held())
    if not recordings:
        raise InputError(f"{folder} is a BIDS folder without an EEG recording (.vhdr, .edf, .bdf, .set)")
    return recordings


def _label(name: str) -> str:
    label = re.sub(r"[^A-Za-z0-9]", "", name.removeprefix("sub-").removeprefix("ses-"))
    if not label:
        raise InputError(f"{name!r} holds no letter or digit for a BIDS name")
    return label


def _quiet() -> warnings.catch_warnings[None]:
    """mne-bids warns of missing electrode positions, of which headset files know nothing, and of its own defaults."""
    return warnings.catch_warnings(action="ignore")
