"""Causal filters as trapezoidal state-variable sections: the same numbers in batch, in a stream and in C.

A section computes, per sample x, from two states (Simper, "Linear trapezoidal integrated SVF", 2013):
``v3 = x - s2;  v1 = a1 s1 + a2 v3;  v2 = s2 + a2 s1 + a3 v3;  s1 = 2 v1 - s1;  s2 = 2 v2 - s2;  y = m0 x + m1 v1 + m2 v2``.
It is the bilinear transform of an analogue second-order section, thus equal to a Butterworth biquad in exact
arithmetic, and keeps its precision in float32 and in integers for corners far below the sampling rate, where the direct
forms lose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray


@dataclass(frozen=True)
class Section:
    """One second-order section; coefficients are float32 numbers, so that every implementation starts from the same.

    Attributes:
        a1, a2, a3: gains of the two integrators.
        m0, m1, m2: weights of the input, band-pass and low-pass outputs.
    """

    a1: float
    a2: float
    a3: float
    m0: float
    m1: float
    m2: float

    def sos(self) -> NDArray[np.float64]:
        """The same transfer function as one row of second-order coefficients (b0 b1 b2 1 a1 a2), for `scipy.signal.sosfilt`."""
        # State space of the section, s = (s1, s2): s' = A s + B x, y = C s + D x.
        A = np.array([[2 * self.a1 - 1, -2 * self.a2], [2 * self.a2, 1 - 2 * self.a3]])
        B = np.array([2 * self.a2, 2 * self.a3])
        C = np.array([self.m1 * self.a1 + self.m2 * self.a2, -self.m1 * self.a2 + self.m2 * (1 - self.a3)])
        D = self.m0 + self.m1 * self.a2 + self.m2 * self.a3
        trace, determinant = A[0, 0] + A[1, 1], A[0, 0] * A[1, 1] - A[0, 1] * A[1, 0]
        # y/x = D + C (zI - A)^-1 B with adj(zI - A) = zI - [[A11, -A01], [-A10, A00]].
        adjoint = np.array([[A[1, 1], -A[0, 1]], [-A[1, 0], A[0, 0]]])
        return np.array([D, C @ B - D * trace, D * determinant - C @ adjoint @ B, 1.0, -trace, determinant])


def _section(corner_hz: float, sfreq: float, k: float, mix: tuple[float, float, float]) -> Section:
    if not 0 < corner_hz < sfreq / 2:
        raise InputError(f"a filter corner of {corner_hz:g} Hz is not between 0 and {sfreq / 2:g} Hz, half the sampling rate")
    g = math.tan(math.pi * corner_hz / sfreq)
    a1 = 1 / (1 + g * (g + k))
    values = (a1, g * a1, g * g * a1, *mix)
    return Section(*(float(np.float32(value)) for value in values))


def _dampings(order: int) -> list[float]:
    if order < 2 or order % 2:
        raise InputError(f"a filter order of {order} is not possible; use 2, 4, 6 ...")
    return [2 * math.sin(math.pi * (2 * index + 1) / (2 * order)) for index in range(order // 2)]


def high_pass(corner_hz: float, sfreq: float, order: int = 2) -> tuple[Section, ...]:
    """Butterworth high-pass of even order, -3 dB at `corner_hz`."""
    return tuple(_section(corner_hz, sfreq, k, (1.0, -k, -1.0)) for k in _dampings(order))


def low_pass(corner_hz: float, sfreq: float, order: int = 2) -> tuple[Section, ...]:
    """Butterworth low-pass of even order, -3 dB at `corner_hz`."""
    return tuple(_section(corner_hz, sfreq, k, (0.0, 0.0, 1.0)) for k in _dampings(order))


def notch(centre_hz: float, sfreq: float, quality: float = 15.0) -> tuple[Section, ...]:
    """Notch at `centre_hz` with a -3 dB width of ``centre_hz / quality``."""
    k = 1 / quality
    return (_section(centre_hz, sfreq, k, (1.0, -k, 0.0)),)


@lru_cache(maxsize=64)
def sos_of(sections: tuple[Section, ...]) -> NDArray[np.float64]:
    """The cascade as second-order sections for scipy, shape (n_sections, 6); kept, so not to be written to."""
    return np.array([section.sos() for section in sections]).reshape(-1, 6)


def apply(
    sections: tuple[Section, ...], x: NDArray[Any], state: NDArray[np.float64] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Filter along the last axis from rest, or from the state that the call before returned.

    Args:
        sections: the cascade; empty leaves the signal as it is.
        x: samples, shape (..., n_times).
        state: state of an earlier call.

    Returns:
        The filtered samples and the new state.
    """
    if not sections:
        return x, np.zeros((0, *x.shape[:-1], 2))
    from scipy.signal import lfilter

    # Section by section: what sosfilt computes, without its checks, which cost more than the samples of a live chunk.
    before = np.zeros((len(sections), *x.shape[:-1], 2)) if state is None else state
    after = np.empty_like(before)
    for index, row in enumerate(sos_of(sections)):
        x, after[index] = lfilter(row[:3], row[3:], x, axis=-1, zi=before[index])
    return x, after


def response(sections: tuple[Section, ...], freqs_hz: NDArray[Any], sfreq: float) -> NDArray[np.float64]:
    """Gain (linear magnitude) of the cascade at these frequencies."""
    from scipy.signal import sosfreqz

    return np.abs(sosfreqz(sos_of(sections), worN=np.asarray(freqs_hz), fs=sfreq)[1])
