"""Recordings as the stretches that the firmware reads: some labelled, for calibration, the others to be told."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray
from tinyeeg.chain import Chain
from tinyeeg.recording import Recording


@dataclass(frozen=True)
class Stretch:
    """Samples without a gap and in one state.

    Attributes:
        samples: microvolts as the device gets them, shape (C, T).
        state: index of the true state.
        labelled: whether the device is told the state.
    """

    samples: NDArray[np.float32]
    state: int
    labelled: bool


def plan(recordings: Sequence[Recording], chain: Chain, classes: tuple[str, ...], calibrate_s: float) -> list[Stretch]:
    """Cut recordings of one wearer: first `calibrate_s` seconds of all states, then what is left of them.

    Args:
        recordings: of one person, with states.
        chain: gives rate, channels and the shortest useful length.
        classes: states that the model knows.
        calibrate_s: labelled seconds in all, shared equally by the states; 0 for none.

    Raises:
        InputError: several people, an unknown state, or too little of one.
    """
    people = sorted({recording.subject for recording in recordings})
    if len(people) > 1:
        raise InputError(f"--recording holds {len(people)} people ({', '.join(people[:5])}); a device is worn by one: choose by --person")
    need = round(calibrate_s / len(classes) * chain.sfreq)
    if calibrate_s and need < chain.segment:
        least = len(classes) * chain.segment / chain.sfreq
        raise InputError(f"--calibrate {calibrate_s:g} s is less than one window of each state; use {least:g} s or more, or 0")
    labelled: list[Stretch] = []
    rest: list[Stretch] = []
    missing = dict.fromkeys(range(len(classes)), need)
    for recording in recordings:
        picked = recording.resampled(chain.sfreq).pick(chain.channels)
        for stretch in picked.stretches():
            if stretch.state not in classes:
                raise InputError(f"{recording.name}: the model does not know the state {stretch.state!r}; it knows {', '.join(classes)}")
            state = classes.index(stretch.state)
            samples = picked.signal[:, stretch.start : stretch.stop].astype(np.float32)
            taken = min(missing[state], samples.shape[1])
            if taken >= chain.segment:
                labelled.append(Stretch(samples[:, :taken], state, True))
                missing[state] -= taken
                samples = samples[:, taken:]
            if samples.shape[1] >= chain.segment:
                rest.append(Stretch(samples, state, False))
    short = [classes[state] for state, count in missing.items() if count >= chain.segment]
    if short:
        raise InputError(f"--recording has too little of {', '.join(short)} for {calibrate_s / len(classes):g} s of calibration each")
    if not rest:
        raise InputError("--recording leaves nothing to tell after the calibration; use a longer one or a smaller --calibrate")
    return labelled + rest


def encode(stretches: Sequence[Stretch]) -> bytes:
    """The bytes of ``recording.bin``, see ``c/main.c``."""
    parts = []
    for stretch in stretches:
        parts.append(struct.pack("<iI", stretch.state if stretch.labelled else -1, stretch.samples.shape[1]))
        parts.append(np.ascontiguousarray(stretch.samples.T, dtype="<f4").tobytes())
    return b"".join(parts)
