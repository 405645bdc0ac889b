"""A generator of EEG-like recordings, marked synthetic: subjects, sessions, states, blinks, drift, mains.

Each channel is 1/f noise plus sources in the theta, alpha and beta range whose gain depends on the state, mixed by a fixed
matrix; a subject has an alpha frequency and a gain, a session has electrode gains and offsets. It serves tests, examples
and offline runs, and says nothing about how well attention can be told from real EEG.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import write_text
from numpy.typing import NDArray

from tinyeeg.presets import ACI_CHANNELS, MUSE_CHANNELS
from tinyeeg.recording import Recording, Span

STATES = ("drowsy", "focused", "unfocused")
# Gain of the theta, alpha and beta sources per state; the same direction of change for everyone.
_GAINS = {"focused": (1.0, 1.0, 1.2), "unfocused": (1.0, 1.25, 1.0), "drowsy": (1.25, 1.35, 0.9)}
HEADSETS = {"muse": (MUSE_CHANNELS, 256.0), "epoc7": (ACI_CHANNELS, 128.0)}


def generate(
    *,
    subjects: int = 4,
    sessions: int = 2,
    seconds: float = 60.0,
    headset: str = "muse",
    seed: int = 0,
    effect: float = 1.0,
    artefacts: bool = True,
) -> list[Recording]:
    """Make one recording per subject, session and state.

    Args:
        subjects: number of people.
        sessions: sessions per person.
        seconds: length of each recording.
        headset: ``muse`` (4 channels, 256 Hz) or ``epoc7`` (7 channels, 128 Hz).
        seed: same seed, same samples.
        effect: strength of the states' effect; 0 makes them identical.
        artefacts: add blinks, drift and 50 Hz.
    """
    if headset not in HEADSETS:
        raise InputError(f"--headset {headset}: not known; choose from {', '.join(HEADSETS)}")
    if subjects < 1 or sessions < 1 or seconds < 2:
        raise InputError(f"cannot generate {subjects} subjects with {sessions} sessions of {seconds:g} s; use at least 1, 1 and 2 s")
    channels, sfreq = HEADSETS[headset]
    count = round(seconds * sfreq)
    mixing_rng = np.random.default_rng([seed, 0xEE6])
    mixing = 0.4 + mixing_rng.random((len(channels), 3))
    recordings = []
    for subject in range(subjects):
        person = np.random.default_rng([seed, 1, subject])
        alpha_hz, gain_s = person.normal(10, 0.8), np.exp(person.normal(0, 0.35, 3))
        for session in range(sessions):
            sitting = np.random.default_rng([seed, 2, subject, session])
            electrode, offset = np.exp(sitting.normal(0, 0.2, len(channels))), sitting.normal(800, 40, len(channels))
            order = sitting.permutation(len(STATES))  # otherwise the clock alone would tell the state
            for index, state in enumerate(STATES):
                rng = np.random.default_rng([seed, 3, subject, session, index])
                amplitude = 6 * gain_s * np.array(_GAINS[state]) ** effect
                sources = np.stack(
                    [
                        amplitude[0] * _rhythm(rng, 6.0, 1.5, count, sfreq),
                        amplitude[1] * _rhythm(rng, alpha_hz, 1.0, count, sfreq),
                        amplitude[2] * _rhythm(rng, 20.0, 5.0, count, sfreq),
                    ]
                )
                signal = mixing @ sources + 8 * _pink(rng, (len(channels), count), sfreq)
                signal *= electrode[:, None]
                if artefacts:
                    signal += _artefacts(rng, len(channels), count, sfreq)
                recordings.append(
                    Recording(
                        signal=signal + offset[:, None], sfreq=sfreq, channels=channels, spans=(Span(0, count, state),),
                        name=f"subject{_letter(subject)}-{state}-{session + 1}", subject=f"subject{_letter(subject)}",
                        session=str(session + 1), started=1.7e9 + 86400 * session + int(order[index]) * (seconds + 30), synthetic=True,
                    )
                )  # fmt: skip
    return recordings


def write_folder(folder: str | Path, recordings: list[Recording]) -> list[Path]:
    """Write recordings as muse-lsl CSV files ``subjecta-focused-1.csv`` with a note that they are synthetic.

    Returns:
        The files.
    """
    folder = Path(folder)
    paths = []
    for recording in recordings:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["timestamps", *recording.channels])
        times = (recording.started or 0) + np.arange(recording.n_times) / recording.sfreq
        for time, values in zip(times, recording.signal.T, strict=True):
            writer.writerow([f"{time:.6f}", *(f"{value:.3f}" for value in values)])
        paths.append(folder / f"{recording.name}.csv")
        write_text(paths[-1], text.getvalue())
    write_text(
        folder / "SYNTHETIC.txt",
        "These files are synthetic: made by `tinyeeg generate`, not measured on a person. They serve tests and examples only.\n",
    )
    return paths


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"{index}"


def _rhythm(rng: np.random.Generator, centre_hz: float, width_hz: float, count: int, sfreq: float) -> NDArray[np.float64]:
    """Gaussian noise in a band around `centre_hz`, unit standard deviation."""
    freqs = np.fft.rfftfreq(count, 1 / sfreq)
    shape = np.exp(-0.5 * ((freqs - centre_hz) / width_hz) ** 2)
    return _shaped(rng, shape, count)


def _pink(rng: np.random.Generator, shape: tuple[int, int], sfreq: float) -> NDArray[np.float64]:
    freqs = np.fft.rfftfreq(shape[1], 1 / sfreq)
    colour = np.where(freqs < 0.3, 0.0, 1 / np.sqrt(np.maximum(freqs, 0.3)))
    return np.stack([_shaped(rng, colour, shape[1]) for _ in range(shape[0])])


def _shaped(rng: np.random.Generator, shape: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    spectrum = shape * (rng.normal(size=len(shape)) + 1j * rng.normal(size=len(shape)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, count)
    return noise / noise.std()


def _artefacts(rng: np.random.Generator, channels: int, count: int, sfreq: float) -> NDArray[np.float64]:
    """Blinks (stronger on the front half of the channels), slow drift and 50 Hz, in microvolts."""
    times = np.arange(count) / sfreq
    result = np.outer(rng.uniform(0.3, 1, channels), 20 * np.cumsum(rng.normal(size=count)) / np.sqrt(count))
    front = np.linspace(1, 0.2, channels)[np.argsort(rng.permutation(channels))]
    for blink in rng.uniform(0, times[-1], rng.poisson(times[-1] / 5)):
        result += np.outer(front, 90 * np.exp(-0.5 * ((times - blink) / 0.08) ** 2))
    return result + np.outer(rng.uniform(0.5, 2, channels), np.sin(2 * np.pi * 50 * times))
