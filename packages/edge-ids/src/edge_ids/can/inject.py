"""Attacks with the semantics of the ROAD data set, injected into synthetic or real traffic.

Labels come out per frame and as ROAD-like metadata (ID, byte mask, interval), so that injector and labeller can be held
against each other. A real background with injected frames is semi-synthetic, and marked synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can.frames import EXTENDED, UNLABELLED, Array, Frames, concat, make_frames
from edge_ids.can.generate import arbitrate, durations


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        kind: one of `KINDS`.
        start, end: seconds after the first frame.
        target: ID; None takes a frequent periodic one (ignored by fuzzing and dos).
        mask: payload as hexadecimal nibbles, X leaves a nibble as it is; None makes one that differs from the traffic.
        period_us: of fuzzing (5 ms) and dos (0.3 ms).
        low, high: ID range of fuzzing.
        random_payload: fuzzing with random bytes instead of FF.
        offset: what ``masquerade-offset`` adds to the bytes that change.
    """

    kind: str
    start: float
    end: float
    target: int | None = None
    mask: str | None = None
    period_us: int = 0
    low: int = 0
    high: int = 0xFF
    random_payload: bool = False
    offset: int = 40


@dataclass(frozen=True)
class Injection:
    """What was done.

    Attributes:
        frames: traffic with the attack; each frame is labelled.
        attack: the attack with every choice filled in.
        interval: seconds from first to last trace of it, relative to the first frame.
        added, removed, changed: frames.
    """

    frames: Frames
    attack: Attack
    interval: tuple[float, float]
    added: int
    removed: int
    changed: int

    def metadata(self) -> dict[str, Any]:
        """As an entry of ROAD's capture_metadata.json, plus what ROAD has no field for."""
        target = self.attack.target
        return {
            "description": f"{self.attack.kind}, synthetic",
            "elapsed_sec": self.frames.seconds,
            "modified": True,
            "on_dyno": False,
            "injection_id": "XXX" if target is None else f"0x{target:x}",
            "injection_data_str": self.attack.mask,
            "injection_interval": list(self.interval),
            "synthetic": True,
            "kind": self.attack.kind,
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
        }


def inject(frames: Frames, attack: Attack, *, seed: int = 0, bitrate: int = 500_000) -> Injection:
    """Put one attack into traffic.

    Args:
        frames: one capture, sorted by time; unlabelled frames count as benign.
        attack: what and when.
        seed: of every random choice.
        bitrate: of the bus; injected frames wait for it, and a flood delays the others.

    Raises:
        InputError: unknown kind, no frame of the target in the interval, or an interval outside of the trace.
    """
    if attack.kind not in KINDS:
        raise InputError(f"attack {attack.kind!r} is unknown; use one of {', '.join(KINDS)}")
    if not len(frames) or (np.diff(frames.time_us) < 0).any():
        raise InputError("injection needs a trace of one capture, sorted by time")
    origin = frames.time_us[0]
    if not 0 <= attack.start < attack.end or origin + attack.start * 1e6 > frames.time_us[-1]:
        raise InputError(f"attack interval {attack.start} to {attack.end} s is not inside the trace of {frames.seconds:.3f} s")
    rng = np.random.default_rng(seed)
    classes = tuple(dict.fromkeys(("benign", *[name for name in frames.classes if name not in ("benign", "attack")], attack.kind)))
    old = np.array([classes.index(name) if name in classes else classes.index(attack.kind) for name in frames.classes])
    label = np.where(frames.label == UNLABELLED, 0, old[np.maximum(frames.label, 0)]).astype(np.int16)
    frames = replace(frames, label=label, classes=classes, synthetic=True)
    inside = (frames.time_us >= origin + attack.start * 1e6) & (frames.time_us <= origin + attack.end * 1e6)
    if attack.kind not in ("fuzzing", "dos"):
        target = _busiest(frames, inside) if attack.target is None else attack.target
        attack = replace(attack, target=target)
        inside &= frames.id == target
        if not inside.any():
            raise InputError(f"no frame of ID 0x{target:X} between {attack.start} and {attack.end} s to attack")
    elif attack.kind == "dos":
        attack = replace(attack, target=0 if attack.target is None else attack.target)
    result = KINDS[attack.kind](frames, attack, np.flatnonzero(inside), rng)
    result = replace(result, frames=_serialise(result.frames, bitrate))
    hit = result.frames.time_us[result.frames.label == classes.index(attack.kind)]
    if len(hit):
        result = replace(result, interval=((hit[0] - origin) / 1e6, (hit[-1] - origin) / 1e6))
    return result


def _busiest(frames: Frames, inside: Array) -> int:
    ids, counts = np.unique(frames.id[inside], return_counts=True)
    if not len(ids):
        raise InputError("no frame in the attack's interval")
    return int(ids[counts.argmax()])


def _serialise(frames: Frames, bitrate: int) -> Frames:
    """Sort by time and let every frame wait for the bus; what does not overlap keeps its time."""
    frames = frames.take(np.argsort(frames.time_us, kind="stable"))
    duration = durations(frames.length, frames.key, bitrate)
    # Recorded neighbours may be closer than this bus would allow (rounding, another bit rate): they keep their distance.
    benign = frames.label == 0
    gap = np.diff(frames.time_us, prepend=frames.time_us[0] - 1_000_000)
    duration = np.where(benign, np.minimum(duration, np.maximum(gap, 1)), duration)
    release = frames.time_us - duration
    order = np.argsort(release, kind="stable")
    done, served = arbitrate(release[order], frames.key[order], duration[order])
    frames = frames.take(order[served])
    return replace(frames, time_us=done)


def apply_mask(data: Array, mask: str) -> Array:
    """Replace nibbles of payloads (N, W) by those of `mask`; X keeps what is there; bytes beyond the mask stay."""
    data = data.copy()
    for index, digit in enumerate(mask):
        if digit.upper() == "X":
            continue
        byte, high = divmod(index, 2)
        value = int(digit, 16)
        data[:, byte] = (data[:, byte] & 0x0F) | (value << 4) if high == 0 else (data[:, byte] & 0xF0) | value
    return data


def _mask(attack: Attack, data: Array, length: int, rng: np.random.Generator) -> str:
    """FF in the byte that moves most (a maximal speed, a maximal temperature), the rest as it is."""
    if attack.mask is not None:
        if not attack.mask or len(attack.mask) > 2 * length or any(digit not in "0123456789abcdefABCDEFXx" for digit in attack.mask):
            raise InputError(f"mask {attack.mask!r} must be up to {2 * length} hexadecimal nibbles or X")
        return attack.mask
    spread = data[:, :length].astype(float).std(axis=0) if length else np.zeros(0)
    byte = int(spread.argmax()) if length else 0
    return "".join("FF" if index == byte else "XX" for index in range(length))


def _label(frames: Frames, attack: Attack) -> int:
    return frames.classes.index(attack.kind)


def _fabrication(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """Flam: a forged copy 0.1 to 1 ms after each legitimate frame of the target."""
    forged = frames.take(rows)
    mask = _mask(attack, forged.data, int(forged.length.min()), rng)
    forged = replace(
        forged,
        time_us=forged.time_us + rng.integers(100, 1000, len(rows)) + durations(forged.length, forged.key, 500_000),
        data=apply_mask(forged.data, mask),
        label=np.full(len(rows), _label(frames, attack), np.int16),
    )
    return Injection(concat([frames, forged]), replace(attack, mask=mask), (attack.start, attack.end), len(rows), 0, 0)


def _correlated(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """ROAD's correlated signal: as fabrication, with the 16-bit wheel speeds forced to four different values."""
    length = int(frames.length[rows].min())
    return _fabrication(frames, replace(attack, mask=attack.mask or "595945450000FFFF"[: 2 * length]), rows, rng)


def _changed(frames: Frames, attack: Attack, rows: Array, data: Array) -> Injection:
    all_data, label = frames.data.copy(), frames.label.copy()
    all_data[rows] = data
    label[rows] = _label(frames, attack)
    return Injection(replace(frames, data=all_data, label=label), attack, (attack.start, attack.end), 0, 0, len(rows))


def _masquerade(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """The legitimate frame is replaced at its own time; masked bytes are forged, as ROAD's post-processed captures."""
    data = frames.data[rows]
    mask = _mask(attack, data, int(frames.length[rows].min()), rng)
    return _changed(frames, replace(attack, mask=mask), rows, apply_mask(data, mask))


def _masquerade_constant(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """Every frame repeats the whole payload of the first one: signals and counters stand still."""
    return _changed(frames, attack, rows, np.repeat(frames.data[rows[:1]], len(rows), axis=0))


def _masquerade_replay(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """Every frame carries a payload recorded earlier (counters and all), in order; looped if the past is too short."""
    past = np.flatnonzero((frames.id == attack.target) & (np.arange(len(frames)) < rows[0]))
    if not len(past):
        raise InputError(f"no earlier frame of ID 0x{attack.target:X} to replay; start the attack later")
    source = past[-len(rows) :] if len(past) >= len(rows) else past
    return _changed(frames, attack, rows, np.resize(frames.data[source], (len(rows), frames.data.shape[1])))


def _masquerade_offset(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """A constant is added to every byte that changes, except for counters."""
    data = frames.data[rows]
    every = frames.data[frames.id == attack.target].astype(np.int64)
    moving = every.min(axis=0) != every.max(axis=0)
    for byte in range(every.shape[1]):
        steps = np.diff(every[:, byte]) % 256
        counts = np.bincount(steps, minlength=256)
        moving[byte] &= not (counts.argmax() != 0 and counts.max() > 0.98 * max(len(steps), 1))
    if not moving.any():
        raise InputError(f"ID 0x{attack.target:X} has no byte that changes; choose another target")
    return _changed(frames, attack, rows, np.where(moving, data + np.uint8(attack.offset), data))


def _inserted(frames: Frames, attack: Attack, times: Array, ids: Array, data: Array) -> Injection:
    new = make_frames(
        times, ids & 0x1FFFFFFF, data, 8, flags=np.where(ids > 0x7FF, EXTENDED, 0), label=_label(frames, attack),
        capture=frames.capture[0], channel=frames.channel[0], channels=frames.channels, classes=frames.classes, captures=frames.captures,
    )  # fmt: skip
    return Injection(concat([frames, new]), attack, (attack.start, attack.end), len(new), 0, 0)


def _times(frames: Frames, attack: Attack, period_us: int) -> Array:
    begin, end = (int(frames.time_us[0] + 1e6 * t) for t in (attack.start, attack.end))
    return np.arange(begin, min(end, int(frames.time_us[-1])), max(period_us, 1), dtype=np.int64)


def _fuzzing(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """IDs in a cycle, payload FF (or random), every 5 ms."""
    attack = replace(attack, period_us=attack.period_us or 5000, mask=None if attack.random_payload else "F" * 16)
    times = _times(frames, attack, attack.period_us)
    ids = attack.low + np.arange(len(times)) % (attack.high - attack.low + 1)
    data = rng.integers(0, 256, (len(times), 8), dtype=np.uint8) if attack.random_payload else np.full((len(times), 8), 255, np.uint8)
    return _inserted(frames, attack, times, ids, data)


def _dos(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """The highest priority ID, 0x000, every 0.3 ms: legitimate frames are delayed."""
    attack = replace(attack, period_us=attack.period_us or 300, mask="0" * 16)
    times = _times(frames, attack, attack.period_us)
    return _inserted(frames, attack, times, np.full(len(times), attack.target), np.zeros((len(times), 8), np.uint8))


def _replay(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """Frames of the target recorded before the attack are sent again, besides the legitimate ones."""
    span = int((attack.end - attack.start) * 1e6)
    begin = int(frames.time_us[0] + attack.start * 1e6)
    past = np.flatnonzero((frames.id == attack.target) & (frames.time_us < begin) & (frames.time_us >= begin - span))
    if not len(past):
        raise InputError(f"no earlier frame of ID 0x{attack.target:X} to replay; start the attack later")
    again = frames.take(past)
    shift = begin - int(again.time_us[0]) + int(rng.integers(200, 1500))
    again = replace(again, time_us=again.time_us + shift, label=np.full(len(past), _label(frames, attack), np.int16))
    return Injection(concat([frames, again]), attack, (attack.start, attack.end), len(past), 0, 0)


def _suspension(frames: Frames, attack: Attack, rows: Array, rng: np.random.Generator) -> Injection:
    """The target falls silent: its frames are removed. No frame is labelled; the interval is in the metadata."""
    keep = np.ones(len(frames), np.bool_)
    keep[rows] = False
    origin = frames.time_us[0]
    interval = (float(frames.time_us[rows[0]] - origin) / 1e6, float(frames.time_us[rows[-1]] - origin) / 1e6)
    return Injection(frames.take(keep), attack, interval, 0, len(rows), 0)


KINDS: dict[str, Callable[[Frames, Attack, Array, np.random.Generator], Injection]] = {
    "fuzzing": _fuzzing,
    "fabrication": _fabrication,
    "correlated": _correlated,
    "masquerade": _masquerade,
    "masquerade-constant": _masquerade_constant,
    "masquerade-replay": _masquerade_replay,
    "masquerade-offset": _masquerade_offset,
    "dos": _dos,
    "replay": _replay,
    "suspension": _suspension,
}
