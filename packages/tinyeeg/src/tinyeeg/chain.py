"""The preprocessing chain as plain data, and its features of a whole recording.

One `Chain` says everything between raw microvolts and a feature vector: offset removal, causal filters, tapered segments,
Fourier power in bins or bands, smoothing over segments, decibels. `Chain.features` computes it for a whole stretch,
`tinyeeg.stream.StreamingChain` sample by sample, and `tinyeeg.codegen` writes it as C; all three agree (tests).

Dimensions: C channels, T samples, S segments (one per hop), L samples per segment, K bins, G groups of bins, F = C * G features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg import filters
from tinyeeg.filters import Section

POWER_FLOOR = 1e-6  # uV^2: below any EEG amplifier's noise; keeps the logarithm of a dead channel finite


@dataclass(frozen=True)
class Group:
    """A sum of neighbouring Fourier bins: a single bin of a spectrogram, or a band.

    Attributes:
        name: part of the feature's name, such as ``alpha`` or ``10.5Hz``.
        first, last: bins, both included; bin k lies at ``k * sfreq / n_fft`` Hz.
    """

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Smoothing:
    """Causal mean of the power over segments.

    Attributes:
        kind: ``none``, ``boxcar`` (mean of the last `frames` segments, fewer at the start) or ``exponential``
            (weight ``1 / frames`` for the newest segment, starting at the first).
        frames: length in segments, 1 or more.
    """

    kind: str = "none"
    frames: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("none", "boxcar", "exponential"):
            raise InputError(f"smoothing kind is {self.kind!r}; use none, boxcar or exponential")
        if self.frames < 1 or (self.kind == "none" and self.frames != 1):
            raise InputError(f"smoothing frames is {self.frames}; it is 1 without smoothing, else 1 or more")

    def apply(self, power_SF: NDArray[np.float64]) -> NDArray[np.float64]:
        """Smooth rows that are in the order of time, shape (S, ...)."""
        if self.kind == "none" or len(power_SF) == 0:
            return power_SF
        if self.kind == "boxcar":
            # Shifted sums, not a running one: an artefact must not cost the digits of what follows it.
            total = power_SF.copy()
            for lag in range(1, min(self.frames, len(power_SF))):
                total[lag:] += power_SF[:-lag]
            count = np.minimum(np.arange(1, len(power_SF) + 1), self.frames)
            return total / count.reshape(-1, *[1] * (power_SF.ndim - 1))
        from scipy.signal import lfilter

        alpha = 1 / self.frames
        return lfilter([alpha], [1, alpha - 1], power_SF, axis=0, zi=(1 - alpha) * power_SF[:1])[0]


@dataclass(frozen=True)
class Chain:
    """What happens to the raw samples of one recording, without any fitted number.

    Attributes:
        name: for reports and file headers.
        sfreq: sampling rate in Hz.
        channels: names, in the order of the rows.
        sections: causal filters, applied after the first sample was subtracted from all.
        segment: samples per tapered segment (L).
        hop: samples from one segment, and one decision, to the next.
        n_fft: transform length, a power of two. A longer segment is folded onto it: that yields its exact Fourier transform
            at the multiples of ``sfreq / n_fft``.
        taper: ``hann``, ``blackman`` or ``boxcar`` (periodic).
        groups: bins or bands, the same for each channel.
        smoothing: mean over segments before the logarithm.
        lsb_uv: microvolts per step of the converter (used by the integer target, and by `quantise`).
        quantise: round the samples to converter steps first; the ring buffer of a device then needs two bytes a sample.
    """

    name: str
    sfreq: float
    channels: tuple[str, ...]
    segment: int
    hop: int
    n_fft: int
    taper: str
    groups: tuple[Group, ...]
    sections: tuple[Section, ...] = ()
    smoothing: Smoothing = Smoothing()
    lsb_uv: float = 0.5
    quantise: bool = False

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise InputError(f"channels are {list(self.channels)}; give one or more different names")
        if self.n_fft < 8 or self.n_fft & (self.n_fft - 1):
            raise InputError(f"n_fft is {self.n_fft}; it is a power of two, 8 or more")
        if self.segment < 8 or not 1 <= self.hop <= self.segment:
            raise InputError(f"segment is {self.segment} and hop {self.hop} samples; use a segment of 8 or more and a hop of 1 to segment")
        if self.taper not in ("hann", "blackman", "boxcar"):
            raise InputError(f"taper is {self.taper!r}; use hann, blackman or boxcar")
        for group in self.groups:
            if not 0 < group.first <= group.last < self.n_fft // 2:
                nyquist = f"the bins between 0 and {self.sfreq / 2:g} Hz"
                raise InputError(f"{group.name} covers bins {group.first}..{group.last}, which are not inside {nyquist}")
        if not self.groups:
            raise InputError("the chain has no feature: no bin and no band fits below half the sampling rate")
        if self.quantise and self.sections:
            raise InputError("quantise keeps the raw steps of the converter, so the chain has no filter sections")
        if not self.lsb_uv > 0:
            raise InputError(f"lsb_uv is {self.lsb_uv}; it is a number of microvolts above 0")

    @cached_property
    def window(self) -> NDArray[np.float64]:
        """The taper, shape (L,)."""
        from scipy.signal import get_window

        return np.asarray(get_window(self.taper, self.segment))

    @cached_property
    def _edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last bin of each group, shape (G,)."""
        return np.array([group.first for group in self.groups]), np.array([group.last for group in self.groups])

    @cached_property
    def scale(self) -> float:
        """Factor from ``|X|^2`` to microvolts squared: one-sided density times bin width, ``2 / (n_fft sum(w^2))``."""
        return 2 / (self.n_fft * float(self.window @ self.window))

    @property
    def look_back(self) -> int:
        """Raw samples that a settled feature vector depends on through segments and smoothing (filters aside).

        An exponential mean is counted to three times its length (95 % of its weight).
        """
        frames = self.smoothing.frames * (3 if self.smoothing.kind == "exponential" else 1)
        return self.segment + (frames - 1) * self.hop

    @property
    def n_features(self) -> int:
        """Length of one feature vector."""
        return len(self.channels) * len(self.groups)

    def feature_names(self) -> list[str]:
        """Names in the order of the vector, such as ``O1_10.5Hz_dB``."""
        return [f"{channel}_{group.name}_dB" for channel in self.channels for group in self.groups]

    def n_frames(self, n_times: int) -> int:
        """Feature vectors that `n_times` samples give: ``floor((T - L) / hop) + 1``."""
        return max(0, (n_times - self.segment) // self.hop + 1)

    def steps(self, x_CT: NDArray[Any]) -> NDArray[np.float64]:
        """Samples in microvolts rounded to converter steps and clipped to 16 bit, as a converter would give them."""
        return np.clip(np.floor(np.asarray(x_CT, dtype=np.float64) / self.lsb_uv + 0.5), -32768, 32767)

    def relative(self, x_CT: NDArray[np.float64], first_C1: NDArray[np.float64]) -> NDArray[np.float64]:
        """Samples less the first one, in microvolts, rounded to converter steps if the chain says so."""
        if not self.quantise:
            return x_CT - first_C1
        return np.clip(self.steps(x_CT) - self.steps(first_C1), -32768, 32767) * self.lsb_uv

    def power(self, segments_CSL: NDArray[Any]) -> NDArray[np.float64]:
        """Power of each group in each segment, microvolts squared, shape (S, C, G).

        Args:
            segments_CSL: filtered segments, shape (C, S, L).
        """
        tapered = segments_CSL * self.window
        folds = -(-self.segment // self.n_fft)
        if folds > 1:
            padded = np.zeros((*tapered.shape[:2], folds * self.n_fft))
            padded[..., : self.segment] = tapered
            tapered = padded.reshape(*tapered.shape[:2], folds, self.n_fft).sum(axis=2)
        spectrum = np.fft.rfft(tapered, self.n_fft, axis=-1)
        power_CSK = spectrum.real**2 + spectrum.imag**2
        first, last = self._edges
        if (first == last).all():
            grouped = power_CSK[..., first]
        else:
            power_CSK[..., 0] = 0  # the sums begin at bin 1
            below = np.cumsum(power_CSK[..., : last.max() + 1], axis=-1)
            grouped = below[..., last] - below[..., first - 1]
        return self.scale * grouped.transpose(1, 0, 2)

    def decibels(self, power_SCG: NDArray[np.float64]) -> NDArray[np.float64]:
        """Smooth over segments, then ``10 log10``; shape (S, F)."""
        smooth = self.smoothing.apply(power_SCG.reshape(len(power_SCG), -1))
        return 10 * np.log10(np.maximum(smooth, POWER_FLOOR))

    def features(self, x_CT: NDArray[Any]) -> NDArray[np.float64]:
        """All feature vectors of one gap-free stretch, from rest.

        Args:
            x_CT: microvolts, shape (C, T), in the order of `channels`.

        Returns:
            Decibels relative to one microvolt squared, shape (S, F) with S = `n_frames`.

        Raises:
            InputError: if the number of channels differs or a sample is not finite.
        """
        x = np.asarray(x_CT, dtype=np.float64)
        if x.ndim != 2 or len(x) != len(self.channels):
            raise InputError(f"the signal has shape {x.shape}; this chain takes {len(self.channels)} channels: {', '.join(self.channels)}")
        if not np.isfinite(x).all():
            raise InputError("the signal holds NaN or infinite samples; cut them out as a gap first")
        if self.n_frames(x.shape[1]) == 0:
            return np.zeros((0, self.n_features))
        filtered, _ = filters.apply(self.sections, self.relative(x, x[:, :1]))
        segments = np.lib.stride_tricks.sliding_window_view(filtered, self.segment, axis=-1)[:, :: self.hop]
        return self.decibels(self.power(segments))

    def with_channels(self, channels: tuple[str, ...]) -> Chain:
        """The same chain on other channels."""
        return replace(self, channels=tuple(channels))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes back."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Chain:
        """Read what `to_json` wrote.

        Raises:
            InputError: if a key is missing or unknown.
        """
        try:
            return Chain(
                **{
                    **data,
                    "channels": tuple(data["channels"]),
                    "groups": tuple(Group(**group) for group in data["groups"]),
                    "sections": tuple(Section(**section) for section in data["sections"]),
                    "smoothing": Smoothing(**data["smoothing"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no chain of tinyeeg: {error}") from error
