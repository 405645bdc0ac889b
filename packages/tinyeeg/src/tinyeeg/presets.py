"""Chains by name.

The tables of the paper (Wang, Nahon, Tartaglione, Mozharovskyi, Nguyen, "Optimized preprocessing and Tiny ML for Attention
State Classification", arXiv 2303.11371) are not public to us, so no preset bears its name. `aci2019_stft` is the chain
that the data set's users start from (Aci, Kaya, Mishchenko, Expert Systems with Applications 134, 2019); `compact` is ours.
"""

from __future__ import annotations

from edge_shared.errors import InputError

from tinyeeg import filters
from tinyeeg.chain import Chain, Group, Smoothing

ACI_CHANNELS = ("F7", "F3", "P7", "O1", "O2", "P8", "AF4")
MUSE_CHANNELS = ("TP9", "AF7", "AF8", "TP10")
BANDS = (("delta", 1.0, 4.0), ("theta", 4.0, 8.0), ("alpha", 8.0, 13.0), ("beta", 13.0, 30.0), ("gamma", 30.0, 45.0))  # Hz
EMOTIV_LSB_UV = 20 / 39  # the steps seen in recordings of the 14-bit EPOC: 0.51282 uV
MUSE_LSB_UV = 1000 / 2048  # 12 bit over about 2 mV

NAMES = ("compact", "aci2019-stft")


def band_groups(bands: tuple[tuple[str, float, float], ...], sfreq: float, n_fft: int) -> tuple[Group, ...]:
    """Bands ``low <= f < high`` in Hz as groups of bins; a band without a bin below half the sampling rate is left out."""
    result = []
    for name, low, high in bands:
        inside = [k for k in range(1, n_fft // 2) if low <= k * sfreq / n_fft < high]
        if inside:
            result.append(Group(name, inside[0], inside[-1]))
    return tuple(result)


def aci2019_stft(sfreq: float = 128.0, channels: tuple[str, ...] = ACI_CHANNELS) -> Chain:
    """15 s Blackman window every second, power at 0.5, 1.0 ... 18.0 Hz, mean of 15 frames, decibels: 252 features of 7 channels.

    Each 15 s window is folded onto 2 s before the transform, which gives the same numbers at these frequencies with a
    fraction of the work. Decibels are relative to one microvolt squared; other scalings of ``|X|^2`` differ by a constant.
    """
    n_fft = round(2 * sfreq)
    if n_fft & (n_fft - 1):
        raise InputError(
            f"aci2019-stft puts its bins 0.5 Hz apart, which needs 2 s to be a power of two samples; {sfreq:g} Hz is not (128, 256)"
        )
    groups = tuple(Group(f"{k / 2:.1f}Hz", k, k) for k in range(1, 37))
    second = round(sfreq)
    return Chain(
        "aci2019-stft", sfreq, tuple(channels), 15 * second, second, n_fft, "blackman", groups,
        smoothing=Smoothing("boxcar", 15), lsb_uv=EMOTIV_LSB_UV, quantise=True,
    )  # fmt: skip


def compact(
    sfreq: float = 256.0,
    channels: tuple[str, ...] = MUSE_CHANNELS,
    *,
    segment_s: float = 2.0,
    hop_s: float = 0.5,
    smooth_s: float = 8.0,
    bands: tuple[tuple[str, float, float], ...] = BANDS,
) -> Chain:
    """Welch band powers: 1 Hz high-pass, 2 s Hann segments every half second, mean of the segments of 8 s, decibels.

    Args:
        sfreq: sampling rate in Hz.
        channels: names.
        segment_s: length of a segment in seconds; the nearest power of two samples is used.
        hop_s: time between decisions in seconds.
        smooth_s: stretch that one decision looks back on, in seconds; at the start of a recording what is there is used.
        bands: (name, low, high) in Hz.
    """
    segment = 2 ** max(3, round_log2(segment_s * sfreq))
    hop = max(1, round(hop_s * sfreq))
    frames = max(1, round((smooth_s * sfreq - segment) / hop) + 1)
    smoothing = Smoothing("boxcar", frames) if frames > 1 else Smoothing()
    groups = band_groups(bands, sfreq, segment)
    sections = filters.high_pass(1.0, sfreq)
    return Chain("compact", sfreq, tuple(channels), segment, hop, segment, "hann", groups, sections, smoothing, lsb_uv=MUSE_LSB_UV)


def round_log2(value: float) -> int:
    """The exponent of the power of two that is nearest on the logarithmic scale."""
    import math

    if value < 1:
        raise InputError(f"a segment of {value:g} samples is too short")
    return round(math.log2(value))


def preset(name: str, sfreq: float, channels: tuple[str, ...]) -> Chain:
    """A chain by name, for these channels at this rate.

    Raises:
        InputError: for an unknown name.
    """
    if name == "compact":
        return compact(sfreq, channels)
    if name == "aci2019-stft":
        return aci2019_stft(sfreq, channels)
    raise InputError(f"--preset {name}: not known; choose from {', '.join(NAMES)}")
