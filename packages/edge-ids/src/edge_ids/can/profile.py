"""Learn what benign traffic looks like, and set the thresholds of the streaming engine from benign traffic alone.

The tiny network (`edge_ids.can.tiny`) is trained in between on injected attacks. Thresholds are found by forward chaining: a model of the first 25, 50 and 75 % of the training time is run over the
quarter that follows, and the highest sum that each ID and detector reaches there, doubled, plus 8 bits, is the least
threshold of the final model (which is fitted on everything). A detector that is useless for an ID, because benign
traffic itself keeps surprising it, is thereby switched off for that ID, and the file says so.
"""

# ruff: noqa: N815 - dimensions are suffixes of names, see the legend
from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_json, write_bytes, write_json

from edge_ids.can import engine
from edge_ids.can.engine import BINS, COLUMNS, DETECTORS, ONE_BIT, Model
from edge_ids.can.frames import ERROR, EXTENDED, REMOTE, Array, Frames
from edge_ids.can.relations import fit_checksum, fit_cross, fit_repeat, signal_bits

FORMAT = "edge-ids-can-profile-4"
MAX_IDS = 4096
OFF = 1 << 40  # a threshold that is never reached
BASE_BITS = {
    "timing": 30, "format": 24, "payload-bits": 36, "payload-jump": 44, "counter": 28, "frozen": 30, "ensemble": 48,
    "checksum": 24, "cross": 30, "repeat": 30, "tiny": 60,
}  # fmt: skip
BASE_D = np.array([BASE_BITS.get(name, 0) for name in DETECTORS], np.int64) * ONE_BIT
UNKNOWN_BITS = 30
LOAD_BITS = 30
MATURE_SECONDS = 300.0
LEAST_INTERVALS = 10
PERIODIC_SHARE = 0.6  # of intervals about as long as their median
HELD_UP_SHARE = 0.1  # of long intervals that a short one follows
SILENCE_MARGIN_US = 1_000_000  # the others of an ECU that is switched off have stopped by then too
LONGEST_REST = 100  # changes of the payload
LONGEST_FREEZE = 60  # frames
REST_HOURS = 200.0
FOLDS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Profile:
    """A trained streaming detector.

    Attributes:
        keys_K: int64, keys of the known IDs (see `keys_of`).
        model: arrays of the engine.
        channels: bus names the model tells apart; with a single one, any name is accepted.
        info: how it was trained: frames, seconds, IDs, fingerprint, calibration.
    """

    keys_K: Array
    model: Model
    channels: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write ``profile.npz`` and ``profile.json`` atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, keys_K=self.keys_K, **self.model._asdict())
        write_bytes(Path(folder) / "profile.npz", buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        write_json(Path(folder) / "profile.json", {"format": FORMAT, "sha256": digest, "channels": self.channels, "info": self.info})

    @classmethod
    def load(cls, folder: str | Path) -> Profile:
        """Read a saved profile.

        Raises:
            InputError: if it is absent, damaged or of another format.
        """
        folder = Path(folder)
        if not (folder / "profile.json").is_file():
            raise InputError(f"--model {folder}: no profile.json there; `edge-ids can train --out DIR` makes one")
        meta = read_json(folder / "profile.json", "profile")
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise InputError(f"{folder / 'profile.json'}: its format is not {FORMAT}; train again")
        try:
            raw = (folder / "profile.npz").read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {folder / 'profile.npz'}: {error.strerror}") from error
        if hashlib.sha256(raw).hexdigest() != meta.get("sha256"):
            raise InputError(f"{folder / 'profile.npz'} is damaged or not of this profile.json (hash differs)")
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                model, keys_K = Model(**{name: arrays[name] for name in Model._fields}), arrays["keys_K"]
            channels = tuple(str(name) for name in meta["channels"])
            _fits(keys_K, model)
        except Exception as error:  # zip, numpy and the checks each have their own
            raise InputError(f"{folder / 'profile.npz'} holds no profile ({' '.join(str(error).split())[:120]}); train again") from error
        return cls(keys_K, model, channels, meta.get("info", {}))

    @property
    def memories(self) -> int:
        """IDs that remember their payloads."""
        return int(self.model.repeat_K.max(initial=-1)) + 1

    @property
    def version(self) -> str:
        """Short hash of everything the engine reads: two profiles with the same version raise the same alerts."""
        digest = hashlib.sha256(self.keys_K.tobytes())
        for array in self.model:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def _fits(keys_K: Array, model: Model) -> None:
    """Compiled code checks no bounds: raise ValueError unless every array is as long, and every index as small, as it assumes."""
    k, h = len(keys_K), len(model.hash_key_H)
    sizes = {"": (), "K": (k,), "H": (h,), "KB": (k, 8), "KJ": (k, 65), "KC": (k, 4), "KC3": (k, 4, 3), "K4": (k, 4), "KCX": (k, 3, 11),
             "KD": (k, COLUMNS), "MF": (engine.HIDDEN, engine.FEATURES), "M": (engine.HIDDEN,)}  # fmt: skip
    others = {"timing_evidence_KB": (k, BINS), "cross_evidence_KC": (k, 3), "tiny_meta": (4,), "limits": (engine.L_MATURE + 1,)}
    for name, array in {"keys_K": keys_K, **model._asdict()}.items():
        shape = others.get(name) or sizes[name.rpartition("_")[2]]
        if array.dtype != np.int64 or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not int64 {shape}")
    free = model.hash_key_H < 0
    if k > MAX_IDS or h & (h - 1) or not free.any():
        raise ValueError(f"a hash table of {h} slots for {k} IDs")
    indices = {
        "hash_slot_H": (model.hash_slot_H[~free], 0, k),
        "repeat_K": (model.repeat_K, -1, k),
        "checksum_K4": (model.checksum_K4[:, 0], 0, 5 + len(engine.POLYNOMIALS)),
        "cross_KCX": (model.cross_KCX[:, :, engine.X_PARTNER], 0, k),
    }
    for name, (values, least, end) in indices.items():
        if values.size and (values.min() < least or values.max() >= end):
            raise ValueError(f"{name} points outside of the profile")


def keys_of(frames: Frames, channels: tuple[str, ...]) -> Array:
    """int64 (N): ID, bit 29 extended, bit 30 remote, from bit 32 the bus (0 if the model knows a single bus)."""
    flags = frames.flags.astype(np.int64)
    key = frames.id.astype(np.int64) | (flags & EXTENDED) << 29 | (flags & REMOTE) << 29
    if len(channels) > 1:
        lookup = np.array([channels.index(name) if name in channels else len(channels) for name in frames.channels], np.int64)
        key |= lookup[frames.channel] << 32
    return key


def key_name(key: int) -> str:
    """``0x1A0``, ``0x18FEF100 extended``: an ID as people write it; -1 is the whole bus."""
    if key < 0:
        return "bus"
    kind = (" extended" if key & 0x20000000 else "") + (" remote" if key & 0x40000000 else "")
    width = 8 if key & 0x20000000 else 3
    return f"0x{key & 0x1FFFFFFF:0{width}X}{kind}"


def payloads(frames: Frames) -> Array:
    """int64 (N): the first eight payload bytes, big endian."""
    return np.ascontiguousarray(frames.data[:, :8]).view(">i8").ravel().astype(np.int64)


def train(frames: Frames) -> Profile:
    """Fit and calibrate a profile on benign traffic.

    Args:
        frames: a trace, sorted by time within each capture; frames labelled as attacks are left out.

    Raises:
        InputError: with fewer than 100 benign frames.
    """
    benign = frames.take((frames.label <= 0) & ((frames.flags & ERROR) == 0))
    if len(benign) < 100:
        raise InputError(f"training needs at least 100 benign frames, got {len(benign)} (of {len(frames)} in all)")
    channels = frames.channels if len(np.unique(benign.channel)) > 1 else (frames.channels[benign.channel[0]],)
    clock = _clock(benign)
    profile = fit(benign, channels)
    mature = bool(profile.info["mature"])
    network = _network(benign, clock, channels, mature)
    profile = replace(profile, model=profile.model._replace(**network))
    known = len(profile.keys_K)
    highest_KD = np.zeros((known, COLUMNS), np.int64)
    highest_unknown = 0
    index = {int(key): k for k, key in enumerate(profile.keys_K)}
    for fraction in FOLDS:
        cut, end = np.searchsorted(clock, [clock[-1] * fraction, clock[-1] * (fraction + 0.25)])
        if cut < 100 or end <= cut:
            continue
        earlier = _thresholds_off(fit(benign.take(slice(0, cut)), channels, mature))
        earlier = replace(earlier, model=earlier.model._replace(**network))
        sums, unknown = _highest(earlier, benign.take(slice(cut, end)))
        for k, key in enumerate(earlier.keys_K):
            final = index.get(int(key))
            if final is not None:
                highest_KD[final] = np.maximum(highest_KD[final], sums[k])
        highest_unknown = max(highest_unknown, unknown)
    need_KD = highest_KD * 2 + 8 * ONE_BIT
    threshold_KD = np.where(highest_KD > 0, np.maximum(BASE_D, need_KD), BASE_D)
    threshold_KD[highest_KD > 256 * ONE_BIT] = OFF
    limits = profile.model.limits.copy()
    if highest_unknown:
        limits[engine.L_UNKNOWN_THRESHOLD] = max(UNKNOWN_BITS * ONE_BIT, highest_unknown * 2 + 8 * ONE_BIT)
    off = [f"{key_name(int(profile.keys_K[k]))}:{engine.DETECTORS[d]}" for k, d in np.argwhere(threshold_KD == OFF)]
    raised = int((threshold_KD > BASE_D).sum())
    info = profile.info | {
        "tiny_network": bool(profile.model.tiny_meta[0]),
        "calibration": {"folds": list(FOLDS), "thresholds_raised": raised, "switched_off": off[:200]},
        "synthetic": frames.synthetic,
        "left_out_attack_frames": int((frames.label > 0).sum()),
    }
    return replace(profile, model=profile.model._replace(threshold_KD=threshold_KD, limits=limits), info=info)


def fit(frames: Frames, channels: tuple[str, ...], mature: bool | None = None) -> Profile:
    """The tables of the engine from benign frames, with the thresholds at their base values.

    Args:
        frames: benign.
        channels: buses to tell apart.
        mature: whether there was enough training for the detectors of values; None asks for `MATURE_SECONDS`.
    """
    time_us = _clock(frames)
    key = keys_of(frames, channels)
    unique, counts = np.unique(key, return_counts=True)
    if len(unique) > MAX_IDS:
        unique = np.sort(unique[np.argsort(-counts, kind="stable")[:MAX_IDS]])
    K = len(unique)
    seconds = float(time_us[-1] - time_us[0]) / 1e6
    mature = seconds >= MATURE_SECONDS if mature is None else mature
    tick = _tick(time_us)
    order: Array = np.argsort(key, kind="stable")
    bounds = np.searchsorted(key[order], unique, side="left")
    ends = np.searchsorted(key[order], unique, side="right")
    payload = payloads(frames)
    tables = {
        "lengths_K": np.zeros(K, np.int64), "length_evidence_K": np.zeros(K, np.int64),
        "timing_evidence_KB": np.zeros((K, BINS), np.int64), "median_K": np.zeros(K, np.int64), "pace_K": np.zeros(K, np.int64), "lossy_K": np.zeros(K, np.int64),
        "backlog_K": np.zeros(K, np.int64), "grid_K": np.zeros(K, np.int64), "grid_evidence_K": np.zeros(K, np.int64), "silence_K": np.zeros(K, np.int64), "ones_K": np.zeros(K, np.int64), "zeros_K": np.zeros(K, np.int64),
        "byte_evidence_K": np.zeros(K, np.int64),
        "jump_evidence_KJ": np.zeros((K, 65), np.int64), "step_KB": np.full((K, 8), 255, np.int64), "counter_KC3": np.zeros((K, 4, 3), np.int64),
        "counter_evidence_KC": np.zeros((K, 4), np.int64), "frozen_K": np.zeros(K, np.int64),
        "stuck_KB": np.zeros((K, 8), np.int64), "checksum_K4": np.zeros((K, 4), np.int64), "checksum_evidence_K": np.zeros(K, np.int64),
        "repeat_K": np.full(K, -1, np.int64), "signal_mask_K": np.full(K, -1, np.int64), "repeat_evidence_K": np.zeros(K, np.int64),
    }  # fmt: skip
    for k in range(K):
        rows = order[bounds[k] : ends[k]]
        p, capture = payload[rows], frames.capture[rows]
        length = np.minimum(frames.length[rows].astype(np.int64), 62)
        tables["lengths_K"][k] = np.bitwise_or.reduce(np.int64(1) << length)
        tables["length_evidence_K"][k] = _bits(len(rows), 0, cap=12)
        same = capture[1:] == capture[:-1]
        _fit_payload(tables, k, p, same, length.max(), seconds, frames.data[rows, :8], mature)

    rows_K = [order[bounds[k] : ends[k]] for k in range(K)]
    for k, rows in enumerate(rows_K):
        found, breaks = fit_checksum(payload[rows], frames.length[rows])
        if found is not None:
            tables["checksum_K4"][k] = found
            tables["checksum_evidence_K"][k] = _bits(len(rows), breaks, cap=20 if mature else 12)
        same = np.diff(frames.capture[rows]) == 0
        if same.sum() >= 2:
            _fit_jumps(tables, k, payload[rows], same, frames.data[rows, :8])
            judged = same & (np.diff(frames.time_us[rows]) == np.diff(time_us[rows]))  # the logger did not stall in between
            _fit_timing(tables, k, time_us[rows], payload[rows] & tables["signal_mask_K"][k], judged, mature, tick)
    fit_repeat(tables, payload, rows_K)
    tables["cross_KCX"], tables["cross_evidence_KC"] = fit_cross(time_us, payload, frames.length, rows_K, tables["median_K"])

    gaps = np.diff(frames.time_us)[np.diff(frames.capture) == 0]
    gaps = gaps[gaps >= 0]
    first_seen = np.array([time_us[order[bounds[k]]] for k in range(K)])
    late = int((first_seen > time_us[0] + (time_us[-1] - time_us[0]) / 2).sum())
    limits = np.zeros(7, np.int64)
    # Good and Turing: the next frame has an ID never seen with the probability of those seen once; and new ones may still come.
    unseen = max(late, int((counts == 1).sum()))
    limits[engine.L_UNKNOWN_EVIDENCE] = _bits(len(frames) // 2, unseen, cap=12, least=0)
    limits[engine.L_UNKNOWN_THRESHOLD] = UNKNOWN_BITS * ONE_BIT
    limits[engine.L_LOAD_BITS] = _load_limit(frames, time_us)
    limits[engine.L_LOAD_THRESHOLD] = LOAD_BITS * ONE_BIT
    limits[engine.L_STALL_US] = max(50_000, 3 * int(np.quantile(gaps, 0.999))) if len(gaps) else 50_000
    limits[engine.L_GAP_US] = max(1_000_000, 10 * int(gaps.max())) if len(gaps) else 1_000_000
    limits[engine.L_MATURE] = int(mature)
    hash_key, hash_slot = _hash(unique)
    model = Model(
        hash_key_H=hash_key, hash_slot_H=hash_slot, threshold_KD=np.tile(BASE_D, (K, 1)), limits=limits, **tables, **no_network()
    )  # fmt: skip
    info = {
        "frames": len(frames),
        "seconds": round(seconds, 6),
        "mature": bool(limits[engine.L_MATURE]),
        "ids": K,
        "periodic_ids": int((tables["silence_K"] > 0).sum()),
        "checksums": int((tables["checksum_K4"][:, 0] > 0).sum()),
        "cross_checks": int((tables["cross_KCX"][:, :, engine.X_KIND] > 0).sum()),
    }
    return Profile(unique.astype(np.int64), model, channels, info)


def _bits(count: int, seen: float, cap: int, least: int = 4) -> int:
    """Evidence ``log2((count + 2) / (seen + 1))`` in 1/16 bit; below `least` bits it is none, above `cap` it is the cap."""
    bits = np.log2((count + 2) / (seen + 1))
    return 0 if bits < least else int(min(bits, cap) * ONE_BIT)


def _clock(frames: Frames) -> Any:
    """Time with everything between captures, steps back and long gaps taken out, as the engine does: never decreasing."""
    steps = np.diff(frames.time_us)
    cut = (np.diff(frames.capture) != 0) | (steps < 0)
    inside = steps[~cut]
    stall = max(50_000, 3 * int(np.quantile(inside, 0.999))) if len(inside) else 50_000
    return np.r_[0, np.cumsum(np.where(cut | (steps > stall), 0, steps))]


def _tick(time_us: Array) -> int:
    """The step of a clock too coarse for the bus, us: two frames cannot end at once, so many at one time share a tick; else 0."""
    steps = np.diff(time_us)
    steps, several = steps[steps > 0], (steps == 0).mean() if len(steps) else 0.0
    return int(np.quantile(steps, 0.1)) if len(steps) and several > 0.1 else 0


def bin_start(b: int) -> int:
    """The shortest interval, us, of a bin of `engine.interval_bin`."""
    octave = max((b - 8) // 8, 0)
    return (b - 8 * octave) << octave


def _fit_timing(tables: dict[str, Array], k: int, time_N: Array, signals_N: Array, judged: Array, mature: bool, tick: int) -> None:
    """Period, or shortest distance, of one ID, and the evidence of shorter intervals.

    Args:
        tables, k: to fill.
        time_N, signals_N: time, us, and signals of the payload of its frames.
        judged: whether the interval before a frame (all but the first) is known.
        mature: see `fit`.
        tick: of the clock, us: no interval is known to be shorter.
    """
    intervals = np.diff(time_N)[judged]
    n = len(intervals)
    if n < 2:
        return
    median = int(np.median(intervals))
    tables["median_K"][k] = median
    # An ID without a period still leaves some time between its frames, if only that of the cycle that its sender works in.
    near = intervals[(3 * intervals > 2 * median) & (2 * intervals < 3 * median)]
    periodic = len(near) >= PERIODIC_SHARE * n
    if not periodic:  # how many frames a payload rests depends on how often they come
        tables["frozen_K"][k], tables["stuck_KB"][k] = 0, 0
    pace = tables["pace_K"][k] = median if periodic else int(np.quantile(intervals, 0.01))
    after_long = intervals[1:][2 * intervals[:-1] > 3 * pace]
    held_up = (3 * after_long < 2 * pace).mean() >= HELD_UP_SHARE if len(after_long) >= 3 else True
    tables["lossy_K"][k] = not (periodic and held_up)
    # Jitter makes a backlog of its own; a forged frame for each real one takes it to six to eight periods.
    spread = float(np.subtract(*np.quantile(near, [0.75, 0.25]))) if periodic else 0.0
    backlog = tables["backlog_K"][k] = min(max((pace + 1) // 2, int(3 * spread)), 2 * pace)
    ahead = np.zeros(n, np.bool_)
    engine.early_frames(intervals, pace, tables["lossy_K"][k], backlog, ahead)
    # What the engine excuses, a new value that comes early and is confirmed on the grid, is nothing to get used to.
    changed, excused, hits = (signals_N[1:] != signals_N[:-1]).astype(np.int64), np.zeros(len(judged), np.bool_), 0
    slack = int(max(1.5 * np.quantile(np.abs(near - median), 0.99), median / 64)) + 1 if periodic else 0
    if 0 < slack <= median // 8:
        tables["grid_K"][k] = slack
        hits = engine.uneven_frames(engine.new_state(1, 0), time_N, changed, median, slack, excused)
    short = intervals[ahead & ~excused[judged]]
    bins = np.array([engine.interval_bin(int(x)) for x in np.unique(short)], np.int64)
    counts = np.zeros(BINS + 1)
    np.add.at(counts, bins, np.unique(short, return_counts=True)[1])
    below = np.cumsum(counts)
    # Some IDs send an extra frame whenever a value changes, at any phase of their period: an interval up to x then has
    # the probability r * x / pace, with r the share of such frames (Laplace's estimate where training had none).
    # What training saw more than once in a thousand is a mode of this ID, however rare, and gives no evidence.
    # A short training has not seen every mode of an ID: it takes an interval as short as a forged frame leaves one.
    extra = int((3 * short <= 2 * pace).sum())
    shortest = 2 * pace // 3 if mature or pace <= engine.FAST_US else pace // 4 if periodic else pace // 2
    # A handful of uneven intervals says nothing of the shortest.
    known = n >= LEAST_INTERVALS or (n >= 3 and len(near) == n)
    for b in range(BINS if known else 0):
        seen = below[min(b + 1, BINS)]
        if 1000 * seen > n or bin_start(b) >= shortest:
            continue
        bits = np.log2((n + 2) / (extra + 1)) + min(np.log2(max(pace, 1) / max(bin_start(b), tick, 1)), 10)
        tables["timing_evidence_KB"][k, b] = int(min(bits, 22) * ONE_BIT) if bits >= 4 else 0
    if known and tables["grid_K"][k]:
        tables["grid_evidence_K"][k] = _bits(n, hits, cap=12 if mature else 10)
    longest = int(intervals.max())
    if n >= 20 and longest <= 4 * median:
        tables["silence_K"][k] = (2 if mature else 3) * longest + 3 * median + 50_000 + SILENCE_MARGIN_US


def _fit_payload(
    tables: dict[str, Array], k: int, p: Array, same: Array, length: int, seconds: float, data_N8: Array, mature: bool
) -> None:
    n = len(p)
    tables["ones_K"][k] = np.bitwise_or.reduce(p)
    tables["zeros_K"][k] = np.bitwise_or.reduce(~p)
    changed = (p[1:] ^ p[:-1])[same]
    changes = int((changed != 0).sum())
    tables["byte_evidence_K"][k] = _bits(int(max(changes, n**0.5)), 0, cap=16 if mature else 10, least=0)
    if len(changed) < 2:
        return
    difference = np.diff(data_N8, axis=0)[same]  # wraps modulo 256
    _fit_counters(tables, k, p, same, int(length), 20 if mature else 12)
    _fit_stuck(tables, k, data_N8, difference[changed != 0], seconds)
    # Only for an ID with a byte that practically always moves: a vehicle that stops freezes many others for minutes.
    if tables["stuck_KB"][k].any():
        limit = _rest_limit(changed != 0, seconds, LONGEST_FREEZE)
        # Without a counter it may be noise that never rested only because the vehicle never stopped.
        certain = limit != engine.NEVER_RESTS or tables["counter_KC3"][k, 0, 1] > 0
        tables["frozen_K"][k] = limit + (not certain)


def _fit_jumps(tables: dict[str, Array], k: int, p: Array, same: Array, data_N8: Array) -> None:
    """How far the signals of one ID move from frame to frame; counters and the checksum are none."""
    mask = tables["signal_mask_K"][k] = signal_bits(tables["counter_KC3"][k], tables["checksum_K4"][k])
    changed = ((p[1:] ^ p[:-1]) & mask)[same].view(np.uint64)  # of a signed number numpy counts the bits of |x|
    distance = np.bitwise_count(changed ^ (changed >> np.uint64(1)))  # `engine.distance`
    at_least = np.cumsum(np.bincount(distance, minlength=65)[::-1])[::-1]
    for bits in range(65):
        tables["jump_evidence_KJ"][k, bits] = _bits(len(changed), at_least[max(bits - 2, 0)], cap=12)
    difference = np.diff(data_N8, axis=0)[same]  # wraps modulo 256
    largest = np.minimum(difference, -difference).max(axis=0).astype(np.int64)
    step = (largest + largest // 4 + 4)[::-1]  # byte 0 is the highest of the packed payload
    counts = np.array([(int(mask) >> 8 * b) & 0xFF != 0xFF for b in range(8)])
    tables["step_KB"][k] = np.where(counts, 128, step)


def _fit_stuck(tables: dict[str, Array], k: int, data_N8: Array, difference_N8: Array, seconds: float) -> None:
    """Bytes that never sit out many changes of the payload: they carry noise, a counter or a checksum.

    A smooth signal, whose steps are small beside its range, is none of them: it rests near its extremes, and while the vehicle does.
    """
    if len(difference_N8) < 1000:
        return
    counters = ~int(signal_bits(tables["counter_KC3"][k], np.zeros(4, np.int64)))
    for byte in range(8):
        step = np.minimum(difference_N8[:, byte], -difference_N8[:, byte])
        if counters >> (56 - 8 * byte) & 0xFF or np.quantile(step, 0.99) > np.ptp(data_N8[:, byte]) / 8:
            tables["stuck_KB"][k, 7 - byte] = _rest_limit(difference_N8[:, byte] != 0, seconds, LONGEST_REST)


def _rest_limit(moved_N: Array, seconds: float, most: int) -> int:
    """How long something may stand still until that is a surprise; 0 if it rests too long by itself to say so.

    The lengths of its rests in training are extrapolated: those above their 95 % quantile as an exponential distribution
    with half as much again as their mean excess, to the length that comes once in `REST_HOURS`. At least twice the longest
    rest plus `NEVER_RESTS`; exactly `NEVER_RESTS` if it never rested.

    Args:
        moved_N: whether it moved, frame by frame.
        seconds: that the frames took.
        most: the highest limit that is of use.
    """
    rests = np.diff(np.flatnonzero(np.r_[True, moved_N, True])) - 1
    longest = int(rests.max())
    if longest == 0:
        return engine.NEVER_RESTS
    beyond = np.quantile(rests, 0.95)
    excess = rests[rests > beyond] - beyond
    usual = max(len(excess), 1) * REST_HOURS * 3600 / max(seconds, 1.0)
    limit = beyond + 1.5 * max(float(excess.mean()) if len(excess) else 0.0, 1.0) * np.log(usual)
    limit = int(max(limit, 2 * longest + engine.NEVER_RESTS)) + 1
    return limit if limit <= most else 0


def _network(benign: Frames, clock: Array, channels: tuple[str, ...], mature: bool) -> dict[str, Array]:
    """The tiny network, trained on the third quarter of the time as a model of the first half sees it under attack.

    The last quarter stays unseen by it, so that the threshold is set on new traffic.
    """
    from edge_ids.can.tiny import examples, fit_tiny, network_on

    half, end = np.searchsorted(clock, [clock[-1] // 2, clock[-1] * 3 // 4])
    part = benign.take(slice(half, end))
    if half < 100 or end - half < 100 or (np.diff(part.time_us) < 0).any():
        return no_network()
    base = _thresholds_off(fit(benign.take(slice(0, half)), channels, mature))
    return fit_tiny(*examples(replace(base, model=base.model._replace(**network_on(no_network()))), part)) or no_network()


def no_network() -> dict[str, Array]:
    """Tables of a tiny network that is switched off."""
    return {
        "tiny_MF": np.zeros((engine.HIDDEN, engine.FEATURES), np.int64), "tiny_bias_M": np.zeros(engine.HIDDEN, np.int64),
        "tiny_out_M": np.zeros(engine.HIDDEN, np.int64), "tiny_meta": np.zeros(4, np.int64),
    }  # fmt: skip


def _fit_counters(tables: dict[str, Array], k: int, p: Array, same: Array, length: int, cap: int) -> None:
    """Up to four bytes, nibbles or pairs of bits that step by the same non-zero amount in 99 % of the frames.

    A checksum over a counter steps evenly too while the rest of the payload rests. So where some field counts by one,
    only such fields are taken, and otherwise the single most regular one.
    """
    if same.sum() < 64:
        return
    found: list[tuple[int, int, int, int]] = []
    taken = 0
    for width in (8, 4, 2):
        for shift in range(64 - 8 * min(length, 8), 64, width):
            span = (1 << width) - 1
            if taken & (span << shift):
                continue
            steps = (((p[1:] >> shift) - (p[:-1] >> shift)) & span)[same]
            counts = np.bincount(steps, minlength=span + 1)
            step = int(counts.argmax())
            breaks = len(steps) - int(counts[step])
            # A step that leaves the low half alone is that of a narrower counter in the high half, or a single bit that toggles.
            if step % (1 << width // 2) == 0 or breaks > 0.01 * len(steps):
                continue
            found.append((breaks, shift, width, step))
            taken |= span << shift
    by_one = [field for field in found if field[3] in (1, (1 << field[2]) - 1)]
    for c, (breaks, shift, width, step) in enumerate(by_one[:4] or sorted(found)[:1]):
        tables["counter_KC3"][k, c] = (shift, width, step)
        tables["counter_evidence_KC"][k, c] = _bits(int(same.sum()), breaks, cap)


def _load_limit(frames: Frames, time_us: Array) -> int:
    bits = np.where(frames.flags & EXTENDED, 67, 47) + 8 * frames.length.astype(np.int64)
    loads = np.bincount((time_us - time_us[0]) // engine.BUCKET_US, weights=bits)
    return int(1.25 * loads.max() + 2000)


def _hash(keys: Array) -> tuple[Array, Array]:
    size = 16
    while size < 2 * len(keys):
        size *= 2
    hash_key, hash_slot = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    for k, key in enumerate(keys.tolist()):
        i = (key ^ (key >> 7) ^ (key >> 15)) & (size - 1)
        while hash_key[i] >= 0:
            i = (i + 1) & (size - 1)
        hash_key[i], hash_slot[i] = key, k
    return hash_key, hash_slot


def _thresholds_off(profile: Profile) -> Profile:
    limits = profile.model.limits.copy()
    limits[engine.L_UNKNOWN_THRESHOLD] = OFF
    return replace(profile, model=profile.model._replace(threshold_KD=np.full_like(profile.model.threshold_KD, OFF), limits=limits))


def _highest(profile: Profile, frames: Frames) -> tuple[Array, int]:
    sums_KD = np.zeros((len(profile.keys_K), COLUMNS), np.int64)
    unknown = engine.highest_sums(
        profile.model, engine.new_state(len(profile.keys_K), profile.memories), profile.keys_K, frames.time_us, keys_of(frames, profile.channels),
        frames.length.astype(np.int64), payloads(frames), sums_KD,
    )  # fmt: skip
    return sums_KD, int(unknown)
