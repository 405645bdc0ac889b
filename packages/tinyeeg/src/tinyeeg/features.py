"""Feature extraction as scikit-learn transformers on windows of shape (n_windows, n_channels, n_times), as pyRiemann and MNE use.

`CausalFilter`, `ChannelSubset`   3-D to 3-D
`WelchBands`, `STFTdB`           3-D to decibels, with `get_feature_names_out`
`Baseline`                       2-D: offset and spread of a calibration stretch or of the training set
`Smooth`                         2-D: causal mean over rows in the order of time

They compute what `Chain` computes; on continuous recordings `tinyeeg.table.extract` is the faster way, as it transforms each
segment once.

Dimensions: N windows, C channels, T samples, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from tinyeeg import filters
from tinyeeg.chain import Chain, Smoothing
from tinyeeg.presets import BANDS, aci2019_stft, compact


def _windows(X: Any, sfreq: float) -> NDArray[np.float64]:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 3:
        raise InputError(f"X has shape {X.shape}; it is (n_windows, n_channels, n_times)")
    if not np.isfinite(X).all():
        raise InputError("X holds NaN or infinite samples")
    if not sfreq > 0:
        raise InputError(f"sfreq is {sfreq}; it is a number of Hz above 0")
    return X


class _Stateless(TransformerMixin, BaseEstimator):
    """A transformer that learns nothing but the number of channels."""

    sfreq: float

    def fit(self, X: Any, y: Any = None) -> Self:
        """Remember the number of channels; nothing else is learned."""
        self.n_channels_ = _windows(X, getattr(self, "sfreq", 1.0)).shape[1]
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.requires_fit = False, True, False
        return tags


class CausalFilter(_Stateless):
    """Causal Butterworth high-pass and low-pass and a notch, each window from rest after its first sample was subtracted.

    Args:
        sfreq: Hz.
        high_pass, low_pass: corners (-3 dB) in Hz, or None.
        notch: centre in Hz, or None.
        order: even order of the Butterworth filters.
    """

    def __init__(
        self, sfreq: float = 256.0, high_pass: float | None = 1.0, low_pass: float | None = None, notch: float | None = None, order: int = 2
    ) -> None:
        self.sfreq, self.high_pass, self.low_pass, self.notch, self.order = sfreq, high_pass, low_pass, notch, order

    def sections(self) -> tuple[filters.Section, ...]:
        """The cascade."""
        return (
            *(() if self.high_pass is None else filters.high_pass(self.high_pass, self.sfreq, self.order)),
            *(() if self.low_pass is None else filters.low_pass(self.low_pass, self.sfreq, self.order)),
            *(() if self.notch is None else filters.notch(self.notch, self.sfreq)),
        )

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Filter, (N, C, T) to (N, C, T)."""
        X = _windows(X, self.sfreq)
        return filters.apply(self.sections(), X - X[..., :1])[0]


class ChannelSubset(_Stateless):
    """Keep some channels.

    Args:
        channels: names of the rows of a window.
        keep: names to keep, in this order.
    """

    def __init__(self, channels: Sequence[str] = (), keep: Sequence[str] = ()) -> None:
        self.channels, self.keep = channels, keep

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Pick rows, (N, C, T) to (N, len(keep), T)."""
        X = _windows(X, 1.0)
        unknown = [name for name in self.keep if name not in self.channels]
        if unknown or X.shape[1] != len(self.channels):
            raise InputError(f"cannot keep {list(self.keep)} of {X.shape[1]} channels named {list(self.channels)}")
        return X[:, [list(self.channels).index(name) for name in self.keep]]


class _Spectral(_Stateless):
    def _chain(self, channels: int) -> Chain:
        raise NotImplementedError

    def _names(self, channels: int) -> tuple[str, ...]:
        names = tuple(getattr(self, "channels", None) or (f"ch{index}" for index in range(channels)))
        if len(names) != channels:
            raise InputError(f"X has {channels} channels, {len(names)} names were given")
        return names

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Decibels relative to one microvolt squared (for X in microvolts), (N, C, T) to (N, F): the mean over each window's segments."""
        X = _windows(X, self.sfreq)
        chain = self._chain(X.shape[1])
        count = chain.n_frames(X.shape[2])
        if count == 0:
            raise InputError(f"windows of {X.shape[2]} samples are shorter than one segment of {chain.segment}")
        segments = np.lib.stride_tricks.sliding_window_view(X, chain.segment, axis=-1)[:, :, :: chain.hop]
        flat = segments.transpose(1, 0, 2, 3).reshape(X.shape[1], -1, chain.segment)
        power = chain.power(flat).reshape(len(X), count, -1).mean(axis=1)
        return 10 * np.log10(np.maximum(power, 1e-6))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names such as ``O1_alpha_dB``."""
        check_is_fitted(self, "n_channels_")
        return np.array(self._chain(self.n_channels_).feature_names(), dtype=object)


class WelchBands(_Spectral):
    """Band powers in decibels from Hann segments.

    Args:
        sfreq: Hz.
        channels: names; ``ch0, ch1 ...`` by default.
        bands: (name, low, high) in Hz.
        segment_s: seconds per segment; the nearest power of two samples is used.
        hop_s: seconds from one segment to the next.
    """

    def __init__(
        self,
        sfreq: float = 256.0,
        channels: Sequence[str] | None = None,
        bands: tuple[tuple[str, float, float], ...] = BANDS,
        segment_s: float = 2.0,
        hop_s: float = 0.5,
    ) -> None:
        self.sfreq, self.channels, self.bands, self.segment_s, self.hop_s = sfreq, channels, bands, segment_s, hop_s

    def _chain(self, channels: int) -> Chain:
        return compact(
            self.sfreq, self._names(channels), segment_s=self.segment_s, hop_s=self.hop_s, smooth_s=self.segment_s, bands=self.bands
        )


class STFTdB(_Spectral):
    """The spectrogram bins of Aci et al. (2019) in decibels: 15 s Blackman segments, 0.5 to 18 Hz in steps of 0.5 Hz.

    Args:
        sfreq: Hz, a power of two.
        channels: names; ``ch0, ch1 ...`` by default.
    """

    def __init__(self, sfreq: float = 128.0, channels: Sequence[str] | None = None) -> None:
        self.sfreq, self.channels = sfreq, channels

    def _chain(self, channels: int) -> Chain:
        return aci2019_stft(self.sfreq, self._names(channels))


class Baseline(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Subtract the centre and divide by the spread of the rows that it was fitted on, then clip.

    Fit it on a calibration stretch of the person, or on the training set.

    Args:
        method: ``mean`` (mean and standard deviation) or ``robust`` (median and 1.4826 times the median absolute deviation).
        clip: largest magnitude after scaling, so that one artefact cannot decide.

    Attributes:
        center_, scale_: shape (F,); a constant feature has scale 1.
    """

    def __init__(self, method: str = "mean", clip: float = 5.0) -> None:
        self.method, self.clip = method, clip

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn centre and spread from rows of shape (N, F)."""
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if self.method == "mean":
            self.center_, scale = X.mean(axis=0), X.std(axis=0)
        elif self.method == "robust":
            self.center_ = np.median(X, axis=0)
            scale = 1.4826 * np.median(np.abs(X - self.center_), axis=0)
        else:
            raise InputError(f"method is {self.method!r}; use mean or robust")
        self.scale_ = np.where(scale > 1e-9, scale, 1.0)
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Scale and clip, (N, F) to (N, F)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.clip((X - self.center_) / self.scale_, -self.clip, self.clip)


class Smooth(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Causal mean over the rows of one recording in the order of time.

    Args:
        kind: ``boxcar`` or ``exponential``, see `tinyeeg.chain.Smoothing`.
        frames: length in rows.
    """

    def __init__(self, kind: str = "boxcar", frames: int = 15) -> None:
        self.kind, self.frames = kind, frames

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters; nothing is learned."""
        validate_data(self, X, dtype=np.float64)
        Smoothing(self.kind, self.frames)
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Smooth, (N, F) to (N, F)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return Smoothing(self.kind, self.frames).apply(X)
