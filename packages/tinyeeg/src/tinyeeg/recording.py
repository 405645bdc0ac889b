"""One recording as plain data: microvolts, where it has gaps, which state held when, who it is from.

Dimensions: C channels, T samples.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mne.io import BaseRaw


@dataclass(frozen=True)
class Span:
    """A stretch of samples ``start <= i < stop`` in one state."""

    start: int
    stop: int
    state: str


@dataclass(frozen=True)
class Recording:
    """A recording of one person.

    Attributes:
        signal: microvolts, shape (C, T); samples on the two sides of a gap stand next to each other.
        sfreq: sampling rate in Hz.
        channels: C names.
        spans: labelled stretches, in order, not overlapping; markers without a length are kept, and give no windows (see `held`).
        gaps: sample numbers that follow a gap; no window may contain one and its predecessor.
        gap_s: length of each gap in seconds.
        name, subject, session: who and what; windows of two recordings with equal (subject, session) belong to one session.
        started: time of the first sample in seconds since 1970, or None if the file does not tell.
        role: ``""``, or ``habituation`` or ``incomplete`` for recordings that a data set's users leave out.
        synthetic: True for generated signals.
        notes: what the reader repaired or found odd.
    """

    signal: NDArray[np.float64]
    sfreq: float
    channels: tuple[str, ...]
    spans: tuple[Span, ...]
    gaps: tuple[int, ...] = ()
    gap_s: tuple[float, ...] = ()
    name: str = ""
    subject: str = "1"
    session: str = "1"
    started: float | None = None
    role: str = ""
    synthetic: bool = False
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.signal.ndim != 2 or self.signal.shape[0] != len(self.channels):
            raise InputError(f"{self.name or 'recording'}: signal of shape {self.signal.shape} for {len(self.channels)} channels")
        if not (np.isfinite(self.sfreq) and self.sfreq > 0):
            raise InputError(f"{self.name or 'recording'}: the sampling rate is {self.sfreq} Hz; it is a number above 0")

    @property
    def n_times(self) -> int:
        """Number of samples."""
        return self.signal.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the samples alone: two copies of a file under other names have the same."""
        return hashlib.sha256(np.ascontiguousarray(self.signal, dtype=np.float32).tobytes()).hexdigest()[:16]

    @property
    def has_stretches(self) -> bool:
        """Whether a span is more than a marker, which some recorders make one sample long."""
        return any(span.stop - span.start > 1 for span in self.spans)

    def held(self) -> Recording:
        """The same recording, but where all spans are markers, each state holds until the next one begins."""
        if self.has_stretches:
            return self
        ends = [*(span.start for span in self.spans[1:]), self.n_times]
        return replace(self, spans=tuple(replace(span, stop=stop) for span, stop in zip(self.spans, ends, strict=False)))

    def stretches(self) -> list[Span]:
        """Labelled stretches without a gap inside: what windows may be cut from."""
        result = []
        for span in self.spans:
            edges = [span.start, *(gap for gap in self.gaps if span.start < gap < span.stop), span.stop]
            result += [Span(low, high, span.state) for low, high in itertools.pairwise(edges) if high > low]
        return result

    def time_of(self, sample: NDArray[Any]) -> NDArray[np.float64]:
        """Seconds since the first sample, gaps included."""
        times = np.asarray(sample) / self.sfreq
        for gap, seconds in zip(self.gaps, self.gap_s, strict=False):
            times = times + seconds * (np.asarray(sample) >= gap)
        return times

    def pick(self, channels: tuple[str, ...]) -> Recording:
        """The same recording with these channels, in this order.

        Raises:
            InputError: naming the first channel that is not there.
        """
        known = {name.casefold(): index for index, name in enumerate(self.channels)}
        for channel in channels:
            if channel.casefold() not in known:
                raise InputError(f"{self.name}: no channel {channel!r}; it has {', '.join(self.channels)}")
        rows = [known[channel.casefold()] for channel in channels]
        return replace(self, signal=self.signal[rows], channels=tuple(channels))

    def resampled(self, sfreq: float) -> Recording:
        """The same recording at another rate (polyphase, each gap-free stretch on its own)."""
        if abs(sfreq - self.sfreq) < 1e-6 * sfreq:
            return self
        from fractions import Fraction

        from scipy.signal import resample_poly

        ratio = Fraction(sfreq / self.sfreq).limit_denominator(1000)
        edges = [0, *self.gaps, self.n_times]
        parts, starts = [], [0]
        for low, high in itertools.pairwise(edges):
            piece = self.signal[:, low:high]
            offset = piece[:, :1]
            parts.append(resample_poly(piece - offset, ratio.numerator, ratio.denominator, axis=1) + offset)
            starts.append(starts[-1] + parts[-1].shape[1])
        new_edges = np.array(starts)

        def moved(sample: int) -> int:
            piece = int(np.searchsorted(edges, sample, side="right")) - 1
            if piece >= len(parts):
                return int(new_edges[-1])
            return int(min(new_edges[piece] + round((sample - edges[piece]) * float(ratio)), new_edges[piece + 1]))

        spans = tuple(Span(moved(span.start), moved(span.stop), span.state) for span in self.spans)
        note = f"resampled from {self.sfreq:g} to {sfreq:g} Hz"
        return replace(
            self, signal=np.concatenate(parts, axis=1), sfreq=sfreq, spans=spans, gaps=tuple(starts[1:-1]), notes=(*self.notes, note)
        )

    def to_raw(self) -> BaseRaw:
        """An MNE `Raw` in volts: states as annotations, gaps as ``BAD_gap`` (zero length, at the first sample after it)."""
        from datetime import UTC, datetime

        import mne

        info = mne.create_info(list(self.channels), self.sfreq, "eeg")
        raw = mne.io.RawArray(self.signal * 1e-6, info, verbose="error")
        described = [(span.start, span.stop - span.start, span.state) for span in self.spans] + [(gap, 0, "BAD_gap") for gap in self.gaps]
        described.sort(key=lambda row: row[0])
        if self.started is not None:
            raw.set_meas_date(datetime.fromtimestamp(self.started, UTC))
        raw.set_annotations(
            mne.Annotations(
                [start / self.sfreq for start, _, _ in described],
                [length / self.sfreq for _, length, _ in described],
                [text for _, _, text in described],
                orig_time=raw.info["meas_date"],
            ),
            verbose="error",
        )
        with raw.info._unlock():
            raw.info["subject_info"] = {"his_id": self.subject}
        raw.info["description"] = f"{'synthetic signal; ' if self.synthetic else ''}session {self.session}; {self.name}"
        return raw

    @staticmethod
    def from_raw(raw: BaseRaw, *, name: str = "", subject: str = "1", session: str = "1") -> Recording:
        """The EEG channels of an MNE `Raw`; its annotations become spans, those that begin with BAD or EDGE become gaps."""
        import mne

        picks = mne.pick_types(raw.info, eeg=True, exclude=[])
        if len(picks) == 0:
            raise InputError(f"{name or 'raw'}: no EEG channel among {', '.join(raw.ch_names)}")
        sfreq = float(raw.info["sfreq"])
        start_s = raw.first_samp / sfreq if raw.annotations.orig_time is not None else 0.0
        marks = []
        for onset, duration, text in zip(raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True):
            start = max(0, round((onset - start_s) * sfreq))
            # MNE's BrainVision files put the kind of a marker before it.
            marks.append(Span(start, min(int(raw.n_times), start + round(float(duration) * sfreq)), str(text).removeprefix("Comment/")))
        bad = [mark for mark in marks if mark.state.upper().startswith(("BAD", "EDGE"))]
        gaps = sorted({edge for mark in bad for edge in (mark.start, mark.stop) if 0 < edge < raw.n_times})
        spans = [mark for mark in marks if mark not in bad]
        for hole in (mark for mark in bad if mark.stop > mark.start):
            spans = [piece for span in spans for piece in _without(span, hole)]
        date = raw.info["meas_date"]
        return Recording(
            signal=raw.get_data(picks) * 1e6,
            sfreq=sfreq,
            channels=tuple(raw.ch_names[pick] for pick in picks),
            spans=tuple(sorted(spans, key=lambda span: span.start)),
            gaps=tuple(gaps),
            gap_s=(0.0,) * len(gaps),
            name=name,
            subject=subject,
            session=session,
            started=None if date is None else date.timestamp(),
        )


def _without(span: Span, hole: Span) -> list[Span]:
    if hole.stop <= span.start or hole.start >= span.stop:
        return [span]
    return [Span(low, high, span.state) for low, high in ((span.start, hole.start), (hole.stop, span.stop)) if high > low]
