"""The chain in integers, as the generated C computes it: the reference that the C must equal bit for bit.

Formats: samples are converter steps (16 bit); filter gains Q30 (output weights Q29) on samples with 10 further bits; ring
values 16 bit with 4 further bits after a high-pass; taper Q15; twiddles Q30; powers 32 bit unsigned; decibels Q8; scaled features
Q10; weights 16 bit with as many fractional bits as fit.

Dimensions: C channels, T samples, S segments, F features, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg.chain import Chain
from tinyeeg.deployed import Deployed, Linear, Mlp, Trees

Ints = NDArray[np.int64]

FILTER_BITS = 10  # further bits inside the filters
DB_BITS, Z_BITS = 8, 10
DB_PER_LOG2 = round(10 * math.log10(2) * 2 ** (DB_BITS - 16) * 2**30)  # log2 in Q16 to decibels in Q8, Q30
LARGEST_SINE_UV = 500.0  # a bin's power of a sine of this amplitude still fits 32 bits


@dataclass(frozen=True)
class FixedChain:
    """Integer tables of a chain.

    Args:
        chain: what to compute.
    """

    chain: Chain

    @property
    def ring_bits(self) -> int:
        """Further bits of a stored sample: 4 after a filter that removed the offset, else 0."""
        return 4 if self.chain.sections else 0

    @property
    def folds(self) -> int:
        """Pieces that a segment is folded from."""
        return -(-self.chain.segment // self.chain.n_fft)

    @cached_property
    def taper(self) -> Ints:
        """First half of the taper and its middle, Q15."""
        half = self.chain.window[: self.chain.segment // 2 + 1]
        return np.minimum(np.round(half * 32768), 32767).astype(np.int64)

    @cached_property
    def sine(self) -> Ints:
        """Quarter wave, Q30, ``n_fft / 4 + 1`` entries."""
        quarter = np.arange(self.chain.n_fft // 4 + 1)
        return np.round(np.sin(2 * np.pi * quarter / self.chain.n_fft) * 2**30).astype(np.int64)

    @cached_property
    def sections(self) -> Ints:
        """Filter gains a1 a2 a3 in Q30 and m0 m1 m2 in Q29, shape (sections, 6)."""
        rows = [[s.a1 * 2**30, s.a2 * 2**30, s.a3 * 2**30, s.m0 * 2**29, s.m1 * 2**29, s.m2 * 2**29] for s in self.chain.sections]
        values = np.round(np.array(rows).reshape(-1, 6)).astype(np.int64)
        if (np.abs(values) >= 2**31).any():
            raise InputError("a filter gain does not fit the integer format; use corners below a quarter of the sampling rate")
        return values

    @property
    def work_shift(self) -> int:
        """Bits dropped when a tapered segment is folded, so that the transform's input stays below 2^28."""
        window = np.zeros(self.folds * self.chain.n_fft)
        window[: self.chain.segment] = self.chain.window
        largest = window.reshape(self.folds, -1).sum(axis=0).max()
        return max(1, math.ceil(math.log2(largest * 2**30)) - 28)

    @property
    def _microvolts(self) -> float:
        """Microvolts of the true transform per unit of the integer one."""
        return self.chain.n_fft / 2 * self.chain.lsb_uv / 2**self.ring_bits / 2 ** (15 - self.work_shift)

    @property
    def power_shift(self) -> int:
        """Bits dropped from a power, so that a sine of `LARGEST_SINE_UV` fits 32 bits."""
        sine = (LARGEST_SINE_UV * float(self.chain.window.sum()) / 2 / self._microvolts) ** 2
        return max(0, math.ceil(math.log2(sine)) - 32)

    @property
    def offset(self) -> int:
        """Decibels (Q8) of one unit of power; for the exponential mean, of its Q15 unit."""
        bits = self.power_shift - (15 if self.chain.smoothing.kind == "exponential" else 0)
        return round(2**DB_BITS * (10 * math.log10(self.chain.scale * self._microvolts**2) + bits * 10 * math.log10(2)))

    @property
    def count_db(self) -> Ints:
        """Decibels (Q8) of the number of frames in a boxcar mean, from 0 frames on."""
        counts = np.arange(self.chain.smoothing.frames + 1)
        return np.round(2**DB_BITS * 10 * np.log10(np.maximum(counts, 1))).astype(np.int64)

    @property
    def alpha(self) -> int:
        """Weight of the newest frame of an exponential mean, Q15."""
        return max(1, round(32768 / self.chain.smoothing.frames))

    @cached_property
    def log2_table(self) -> Ints:
        """log2 of 1, 1 + 1/32 ... 2 in Q16."""
        return np.round(np.log2(1 + np.arange(33) / 32) * 65536).astype(np.int64)

    def features(self, steps_CT: NDArray[Any]) -> Ints:
        """Decibels in Q8 for one gap-free stretch, shape (S, F).

        Args:
            steps_CT: converter steps, whole numbers within 16 bits, shape (C, T).
        """
        x = np.asarray(steps_CT).astype(np.int64)
        if self.chain.n_frames(x.shape[1]) == 0:
            return np.zeros((0, self.chain.n_features), dtype=np.int64)
        ring = self._filtered(np.clip(x - x[:, :1], -32768, 32767))
        segments = np.lib.stride_tricks.sliding_window_view(ring, self.chain.segment, axis=-1)[:, :: self.chain.hop]
        return self._decibels(self._power(segments))

    def _filtered(self, x_CT: Ints) -> Ints:
        if not len(self.sections):
            return x_CT
        # Plain Python integers: a recursion over samples is faster so than with small arrays.
        value = np.array([self._run(row) for row in (x_CT << FILTER_BITS).tolist()])
        return np.clip(_rounded(value, FILTER_BITS - self.ring_bits), -32768, 32767)

    def _run(self, row: list[int]) -> list[int]:
        for a1, a2, a3, m0, m1, m2 in self.sections.tolist():
            s1 = s2 = 0
            out = []
            for x in row:
                v3 = x - s2
                v1 = (a1 * s1 + a2 * v3 + (1 << 29)) >> 30
                v2 = s2 + ((a2 * s1 + a3 * v3 + (1 << 29)) >> 30)
                s1, s2 = _clip32(2 * v1 - s1), _clip32(2 * v2 - s2)
                out.append(_clip32((m0 * x + m1 * v1 + m2 * v2 + (1 << 28)) >> 29))
            row = out
        return row

    def _power(self, segments_CSL: Ints) -> Ints:
        n_fft, length = self.chain.n_fft, self.chain.segment
        index = np.arange(length)
        taper = self.taper[np.where(index <= length // 2, index, length - index)]
        padded = np.zeros((*segments_CSL.shape[:2], self.folds * n_fft), dtype=np.int64)
        padded[..., :length] = segments_CSL * taper
        work = _rounded(padded.reshape(*segments_CSL.shape[:2], self.folds, n_fft).sum(axis=2), self.work_shift)
        re, im = self._transform(work[..., 0::2].copy(), work[..., 1::2].copy())
        grouped = []
        for group in self.chain.groups:
            total = np.zeros(re.shape[:2], dtype=np.uint64)
            for k in range(group.first, group.last + 1):
                total += self._bin(re, im, k)
            grouped.append(np.minimum(total >> np.uint64(self.power_shift), np.uint64(0xFFFFFFFF)).astype(np.int64))
        return np.stack(grouped, axis=-1).transpose(1, 0, 2)

    def _twiddle(self, k: Ints) -> tuple[Ints, Ints]:
        quarter, half = self.chain.n_fft // 4, self.chain.n_fft // 2
        cosine = np.where(k <= quarter, self.sine[np.abs(quarter - k)], -self.sine[np.abs(k - quarter)])
        sine = np.where(k <= quarter, self.sine[np.minimum(k, quarter)], self.sine[np.minimum(half - k, quarter)])
        return cosine, sine

    def _transform(self, re: Ints, im: Ints) -> tuple[Ints, Ints]:
        half = self.chain.n_fft // 2
        bits = half.bit_length() - 1
        order = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(half)])
        re, im = re[..., order], im[..., order]
        size = 2
        while size <= half:
            c, s = self._twiddle(np.arange(size // 2) * (self.chain.n_fft // size))
            shape = (*re.shape[:-1], half // size, 2, size // 2)
            re, im = re.reshape(shape), im.reshape(shape)
            (ar, br), (ai, bi) = (np.moveaxis(part, -2, 0) for part in (re, im))
            tr, ti = _rounded(br * c + bi * s, 30), _rounded(bi * c - br * s, 30)
            re = np.stack([(ar + tr + 1) >> 1, (ar - tr + 1) >> 1], axis=-2).reshape(*shape[:-3], half)
            im = np.stack([(ai + ti + 1) >> 1, (ai - ti + 1) >> 1], axis=-2).reshape(*shape[:-3], half)
            size *= 2
        return re, im

    def _bin(self, re: Ints, im: Ints, k: int) -> NDArray[np.uint64]:
        half = self.chain.n_fft // 2
        pr, pi, qr, qi = re[..., k], im[..., k], re[..., half - k], im[..., half - k]
        er, ei, dr, di = pr + qr, pi - qi, pr - qr, pi + qi
        c, s = (int(value) for value in self._twiddle(np.array(k)))
        real = (er + ((c * di - s * dr + (1 << 29)) >> 30)) >> 1
        imag = (ei - ((c * dr + s * di + (1 << 29)) >> 30)) >> 1
        return (real * real).astype(np.uint64) + (imag * imag).astype(np.uint64)

    def _decibels(self, power_SCG: Ints) -> Ints:
        power, smoothing = power_SCG.reshape(len(power_SCG), -1), self.chain.smoothing
        offset = np.full((len(power), 1), self.offset)
        if smoothing.kind == "boxcar":
            total = power.copy()
            for lag in range(1, min(smoothing.frames, len(power))):
                total[lag:] += power[:-lag]
            offset = self.offset - self.count_db[np.minimum(np.arange(1, len(power) + 1), smoothing.frames)][:, None]
            power = total
        elif smoothing.kind == "exponential":
            rows = [power[0] << 15]
            for row in power[1:]:
                wide, mean = row << 15, rows[-1]
                step = (np.abs(wide - mean) >> 15) * self.alpha
                rows.append(np.where(wide >= mean, mean + step, mean - step))
            power = np.stack(rows)
        return _rounded(self.log2_q16(np.maximum(power, 1)) * DB_PER_LOG2, 30) + offset

    def log2_q16(self, values: Ints) -> Ints:
        """log2 of whole numbers above 0 (below 2^62) in Q16."""
        exponent = np.floor(np.log2(values.astype(np.float64))).astype(np.int64)
        exponent += (values >> np.minimum(exponent + 1, 62)) > 0  # float64 rounded down across a power of two, or up
        exponent -= (values >> exponent) == 0
        shifted = values.astype(np.uint64) << (63 - exponent).astype(np.uint64)
        index = ((shifted >> np.uint64(58)) & np.uint64(31)).astype(np.int64)
        part = ((shifted >> np.uint64(42)) & np.uint64(0xFFFF)).astype(np.int64)
        low, high = self.log2_table[index], self.log2_table[index + 1]
        return (exponent << 16) + low + (((high - low) * part) >> 16)


def _rounded(value: Ints, bits: int) -> Ints:
    return (value + (1 << (bits - 1))) >> bits


def _clip32(value: int) -> int:
    return min(max(value, -(2**31)), 2**31 - 1)


def _fraction_bits(values: NDArray[np.float64], largest: int = 14) -> int:
    """Fractional bits with which all values fit 16 bits."""
    peak = float(np.abs(values).max(initial=0.0))
    return max(0, min(24, largest if peak == 0 else math.floor(math.log2(32767 / peak))))


@dataclass(frozen=True)
class FixedModel:
    """Integer tables of a deployed model.

    Args:
        deployed: the model in floating point.
    """

    deployed: Deployed

    @cached_property
    def chain(self) -> FixedChain:
        """Integer tables of its chain."""
        return FixedChain(self.deployed.chain)

    @cached_property
    def center(self) -> Ints:
        """Q8 decibels, shape (F,)."""
        return np.round(self.deployed.center * 2**DB_BITS).astype(np.int64)

    @cached_property
    def inverse(self) -> Ints:
        """Q16 inverse of the scale, shape (F,)."""
        return np.clip(np.round(65536 / self.deployed.scale), 1, 2**31 - 1).astype(np.int64)

    @property
    def clip(self) -> int:
        """Largest magnitude of a scaled feature, Q10."""
        return round(self.deployed.clip * 2**Z_BITS)

    @cached_property
    def tables(self) -> dict[str, Any]:
        """Weights as integers, by the names they have in C, and the numbers of fractional bits."""
        model = self.deployed.model
        if isinstance(model, Linear):
            bits = _fraction_bits(model.weights)
            return {"bits": bits, "weights": _q(model.weights, bits), "bias": _q(model.bias, bits + Z_BITS)}
        if isinstance(model, Mlp):
            b1, b2 = _fraction_bits(model.w1), _fraction_bits(model.w2)
            return {
                "w1_bits": b1, "w2_bits": b2, "w1": _q(model.w1, b1), "b1": _q(model.b1, b1 + Z_BITS),
                "w2": _q(model.w2, b2), "b2": _q(model.b2, b2 + Z_BITS),
            }  # fmt: skip
        bits = _fraction_bits(model.values)
        threshold = np.clip(np.floor(model.threshold * 2**Z_BITS), -32768, 32767).astype(np.int64)
        return {"bits": bits, "threshold": threshold, "values": _q(model.values, bits), "bias": _q(model.bias, bits)}

    def scaled(self, features_SF: Ints, center: Ints | None = None) -> Ints:
        """Scaled and clipped features in Q10, (S, F)."""
        value = ((features_SF - (self.center if center is None else center)) * self.inverse) >> 14
        return np.clip(value, -self.clip, self.clip)

    def scores(self, features_SF: Ints, center: Ints | None = None) -> Ints:
        """Scores, (S, K); their unit depends on the model."""
        z, tables, model = self.scaled(features_SF, center), self.tables, self.deployed.model
        if isinstance(model, Linear):
            return z @ tables["weights"].T + tables["bias"]
        if isinstance(model, Mlp):
            hidden = np.clip((z @ tables["w1"].T + tables["b1"]) >> tables["w1_bits"], 0, 2**31 - 1)
            return hidden @ tables["w2"].T + tables["b2"]
        assert isinstance(model, Trees)
        return tables["bias"] + tables["values"][model.leaves(z, tables["threshold"])].sum(axis=1)

    def predict(self, features_SF: Ints, center: Ints | None = None) -> NDArray[np.int64]:
        """Index of the state, (S,)."""
        return np.argmax(self.scores(features_SF, center), axis=1)


def _q(values: NDArray[np.float64], bits: int) -> Ints:
    return np.round(np.asarray(values) * 2.0**bits).astype(np.int64)
