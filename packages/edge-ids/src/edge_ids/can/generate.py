"""A synthetic CAN bus: periodic and event frames with drift and jitter, arbitration, payloads from a drive profile.

Everything made here is marked synthetic. The default vehicle has the IDs and periods of a real car's trace (10, 50, 100,
500 and 1000 ms families, jitter 0.06 to 0.25 ms, one ID whose period depends on a mode); `like` takes them from a trace
of yours.
"""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can._jit import compiled
from edge_ids.can.frames import EXTENDED, Array, Frames, make_frames

VERSION = 1
Kind = Literal["constant", "counter", "checksum", "speed", "wheel", "rpm", "temperature", "brake", "noise", "walk"]


@dataclass(frozen=True)
class Signal:
    """One payload field.

    Attributes:
        kind: what it carries; ``checksum`` is the XOR of all other bytes.
        byte: first byte.
        width: bytes (1 or 2, big endian).
        scale, offset: number on the bus = scale * value + offset.
        step: of a counter.
    """

    kind: Kind
    byte: int
    width: int = 1
    scale: float = 1.0
    offset: float = 0.0
    step: int = 1


@dataclass(frozen=True)
class Message:
    """One ID of the bus.

    Attributes:
        id: 11 or 29 bits.
        period_us: nominal period.
        jitter_us: standard deviation of the release time.
        length: payload bytes.
        signals: fields of the payload; other bytes are zero.
        event_rate: extra frames per second, at random moments.
        fast_period_us: period while the brake is pressed; 0 for none.
        extended: 29-bit format.
    """

    id: int
    period_us: int
    jitter_us: float = 80.0
    length: int = 8
    signals: tuple[Signal, ...] = ()
    event_rate: float = 0.0
    fast_period_us: int = 0
    extended: bool = field(default=False)


def default_vehicle() -> tuple[Message, ...]:
    """Twenty IDs with the periods and jitter of a real trace of 600 frames/s."""
    s = Signal
    return (
        Message(0x110, 10_000, 250, 8, (s("wheel", 0, 2, 100), s("wheel", 2, 2, 100, 3), s("wheel", 4, 2, 100, 6), s("wheel", 6, 2, 100, 9))),
        Message(0x120, 10_000, 250, 8, (s("speed", 0, 2, 100), s("rpm", 2, 2, 1), s("noise", 4, 1, 8, 100), s("counter", 6), s("checksum", 7))),
        Message(0x140, 10_000, 60, 8, (s("brake", 0, 1, 32), s("counter", 6), s("checksum", 7))),
        Message(0x180, 10_000, 70, 6, (s("rpm", 0, 2, 4), s("counter", 4, step=10))),
        Message(0x1A0, 50_000, 200, 8, (s("temperature", 3, 1, 1, 40), s("counter", 7))),
        Message(0x280, 10_000, 90, 8, (s("rpm", 2, 2, 4), s("noise", 5, 1, 12, 60), s("brake", 6, 1, 3))),
        Message(0x290, 100_000, 100, 8, (s("temperature", 1, 1, 1, 48),)),
        Message(0x295, 1_000_000, 300, 4, (s("temperature", 0, 1, 1, 40), s("noise", 2, 1, 4, 30)), 0.02),
        Message(0x300, 100_000, 150, 8, (s("speed", 1, 2, 10), s("brake", 7)), 0, 20_000),
        Message(0x301, 100_000, 160, 8, (s("constant", 2, 1, 1, 0x55),)),
        Message(0x380, 100_000, 120, 8, (s("brake", 0, 1, 4), s("speed", 2, 1, 1)), 0.2),
        Message(0x381, 100_000, 120, 8, (s("speed", 1, 1, 1), s("constant", 7, 1, 1, 4)), 0.05),
        Message(0x383, 100_000, 120, 5, (s("brake", 1),), 0.05),
        Message(0x410, 100_000, 190, 8, (s("speed", 0, 2, 64), s("constant", 3, 1, 1, 0xE0))),
        Message(0x440, 1_000_000, 250, 6),
        Message(0x480, 1_000_000, 250, 8, (s("constant", 0, 1, 1, 1),)),
        Message(0x4A0, 1_000_000, 240, 6, (s("constant", 0, 1, 1, 1), s("constant", 1, 1, 1, 0x40))),
        Message(0x510, 500_000, 250, 8, (s("temperature", 0, 1, 1, 40),), 0.1),
        Message(0x531, 1_000_000, 250, 6, (s("constant", 0, 1, 1, 3), s("constant", 2, 1, 1, 0x28))),
        Message(0x0D0, 20_000, 120, 8, (s("speed", 0, 2, 100), s("constant", 2, 1, 1, 0x0C), s("brake", 5), s("counter", 6), s("checksum", 7))),
    )  # fmt: skip


def like(frames: Frames) -> tuple[Message, ...]:
    """A vehicle with the IDs, median periods, jitter, lengths and event rates of a real trace.

    Payload bytes that never change keep their value, bytes that count keep counting, all others follow slow random
    walks in the range seen: plausible, not the car's own signals.
    """
    messages = []
    for key in np.unique(frames.key):
        rows = np.flatnonzero(frames.key == key)
        if len(rows) < 3:
            continue
        intervals = np.diff(frames.time_us[rows])
        median = max(int(np.median(intervals)), 500)
        near = intervals[np.abs(intervals - median) < 0.3 * median]
        jitter = float(near.std() / np.sqrt(2)) if len(near) > 2 else 0.0
        length = min(int(np.bincount(frames.length[rows]).argmax()), 8)
        data = frames.data[rows].astype(np.int64)
        signals = []
        for byte in range(length):
            column = data[:, byte]
            low, high = int(column.min()), int(column.max())
            steps, counts = np.unique(np.diff(column) % 256, return_counts=True)
            step = int(steps[counts.argmax()])
            if low == high:
                if low:
                    signals.append(Signal("constant", byte, 1, 1, low))
            elif step and counts.max() > 0.98 * counts.sum():
                signals.append(Signal("counter", byte, step=step))
            else:
                signals.append(Signal("walk", byte, 1, high - low, low))
        events = float((intervals < 0.67 * median).sum() / max(frames.seconds, 1))
        messages.append(Message(int(key & 0x1FFFFFFF), median, jitter, length, tuple(signals), events, 0, bool(key & 0x20000000)))
    if not messages:
        raise InputError("no ID of the trace repeats often enough to take its period")
    return tuple(messages)


@dataclass(frozen=True)
class Drive:
    """Vehicle state on a 100 ms grid: speed (km/h), rpm, brake (0, 1), coolant temperature (degrees C)."""

    speed: Array
    rpm: Array
    brake: Array
    temperature: Array


def drive(seconds: float, rng: np.random.Generator) -> Drive:
    """A random drive: stretches of constant target speed with stops, first-order acceleration."""
    n = int(seconds * 10) + 20
    target = np.zeros(n)
    position = 0
    while position < n:
        duration = int(rng.uniform(50, 400))
        target[position : position + duration] = 0.0 if rng.random() < 0.25 else rng.uniform(20, 130)
        position += duration
    speed = _follow(target, 0.02)
    acceleration = np.r_[0.0, np.diff(speed)]
    brake = (acceleration < -0.25).astype(float)
    gear = np.clip(np.floor(speed / 22), 0, 5)
    rpm = np.where(speed < 1, 800.0, 1100 + (speed - 22 * gear) * 60 + 150 * gear) + rng.normal(0, 6, n)
    temperature = 20 + 70 * (1 - np.exp(-np.arange(n) / 4000)) + np.sin(np.arange(n) / 900)
    return Drive(speed, rpm, brake, temperature)


@compiled
def _follow(target: Any, rate: float) -> Any:
    out = np.zeros(len(target))
    value = 0.0
    for i in range(len(target)):
        value += min(max((target[i] - value) * rate, -1.5), 0.8)
        out[i] = value
    return out


def generate(
    seconds: float,
    vehicle: tuple[Message, ...] | None = None,
    *,
    seed: int = 0,
    bitrate: int = 500_000,
    start_us: int = 1_600_000_000_000_000,
    name: str = "synthetic",
) -> tuple[Frames, dict[str, Any]]:
    """Benign traffic of a vehicle.

    Args:
        seconds: duration.
        vehicle: messages; by default `default_vehicle`.
        seed: of every random choice.
        bitrate: bits per second; frames wait for the bus and the lowest ID wins.
        start_us: time of the beginning.
        name: of the capture.

    Returns:
        Frames (label 0, marked synthetic) and a description: seed, generator version, vehicle.

    Raises:
        InputError: if the vehicle asks for more than the bus can carry, or the duration is out of range.
    """
    vehicle = default_vehicle() if vehicle is None else vehicle
    if not 0 < seconds <= 14 * 86400 or not 10_000 <= bitrate <= 10_000_000:
        raise InputError(f"seconds must be above 0 and at most two weeks, bitrate 10000 to 10000000; got {seconds} and {bitrate}")
    load = sum(frame_bits(m.length, m.extended) * (1e6 / min(m.period_us, m.fast_period_us or m.period_us) + m.event_rate) for m in vehicle)
    if load > 0.95 * bitrate:
        raise InputError(f"the vehicle's messages need {load:.0f} bit/s of {bitrate}; raise --bitrate or lengthen periods")
    rng = np.random.default_rng(seed)
    path = drive(seconds, rng)
    times, keys, lengths, data = [], [], [], []
    for message in vehicle:
        child = np.random.default_rng([seed, message.id, int(message.extended)])
        release = _releases(message, seconds, path, child)
        times.append(release)
        keys.append(np.full(len(release), message.id | (EXTENDED << 29 if message.extended else 0)))
        lengths.append(np.full(len(release), message.length))
        data.append(_payload(message, release, path, child))
    frames = _on_bus(np.concatenate(times), np.concatenate(keys), np.concatenate(lengths), np.concatenate(data), bitrate, start_us)
    about = {"synthetic": True, "generator": f"edge-ids can {VERSION}", "seed": seed, "seconds": seconds, "bitrate": bitrate}
    about["vehicle"] = [asdict(message) for message in vehicle]
    return replace(frames, captures=(name,)), about


def _on_bus(times: Array, keys: Array, lengths: Array, data: Array, bitrate: int, start_us: int) -> Frames:
    order = np.argsort(times, kind="stable")
    times, keys, lengths, data = times[order], keys[order], lengths[order], data[order]
    done, order = arbitrate(times, keys, durations(lengths, keys, bitrate))
    return make_frames(
        done + start_us,
        keys[order] & 0x1FFFFFFF,
        data[order],
        lengths[order],
        flags=(keys[order] >> 29) & EXTENDED,
        label=0,
        synthetic=True,
    )


def _releases(message: Message, seconds: float, path: Drive, rng: np.random.Generator) -> Array:
    drift = 1 + rng.uniform(-50e-6, 50e-6)
    end = seconds * 1e6
    base = np.arange(rng.uniform(0, message.period_us), end, message.period_us * drift)
    if message.fast_period_us:
        fast = np.arange(base[0] if len(base) else 0, end, message.fast_period_us * drift)
        base = np.concatenate([base, fast[path.brake[(fast / 1e5).astype(np.int64)] > 0]])
        base = np.unique(np.round(base / 2000) * 2000)  # both periods share one grid
    base = base + np.clip(rng.normal(0, message.jitter_us, len(base)), -4 * message.jitter_us, 4 * message.jitter_us)
    if message.event_rate:
        base = np.concatenate([base, rng.uniform(0, end, rng.poisson(message.event_rate * seconds))])
    return np.sort(np.maximum(base, 0)).astype(np.int64)


def _payload(message: Message, release: Array, path: Drive, rng: np.random.Generator) -> Array:
    n = len(release)
    data = np.zeros((n, 8), np.uint8)
    tick = (release / 1e5).astype(np.int64)
    for signal in message.signals:
        if signal.kind == "checksum":
            continue
        match signal.kind:
            case "constant":
                value = np.zeros(n)
            case "counter":
                value = (rng.integers(256) + signal.step * np.arange(n)).astype(float)
            case "speed":
                value = path.speed[tick]
            case "wheel":
                value = path.speed[tick] * (1 + rng.normal(0, 0.002, n))
            case "rpm":
                value = path.rpm[tick]
            case "temperature":
                value = path.temperature[tick]
            case "brake":
                value = path.brake[tick]
            case "noise":
                value = rng.normal(0, 1, n).clip(-4, 4)
            case "walk":
                steps = np.cumsum(rng.normal(0, 0.02, len(path.speed)))
                value = (1 + np.sin(steps[tick])) / 2
        number = np.round(signal.scale * value + signal.offset).astype(np.int64)
        if signal.kind != "counter":
            number = number.clip(0, 256**signal.width - 1)
        for index in range(signal.width):
            data[:, signal.byte + index] = (number >> 8 * (signal.width - 1 - index)) & 0xFF
    for signal in message.signals:
        if signal.kind == "checksum":
            data[:, signal.byte] = np.bitwise_xor.reduce(data, axis=1)
    data[:, message.length :] = 0
    return data


def frame_bits(length: int, extended: bool = False) -> int:
    """Bits of a classic data frame with interframe space and an average share of stuff bits (a tenth of the worst case)."""
    bits = (67 if extended else 47) + 8 * length
    return bits + (bits - 13) // 40


def durations(length: Array, key: Array, bitrate: int) -> Array:
    """int64 (N): microseconds that each frame holds the bus."""
    bits = np.where(key & (EXTENDED << 29), 67, 47) + 8 * np.minimum(length, 8).astype(np.int64)
    bits = bits + (bits - 13) // 40
    return np.maximum(bits * 1_000_000 // bitrate, 1)


@compiled
def arbitrate(release: Any, key: Any, duration: Any) -> tuple[Any, Any]:
    """Serialise frames on one bus: among those waiting, the lowest ID wins; a frame is stamped when it has passed.

    Args:
        release: int64 (N), us, ascending: when each frame asks for the bus.
        key: int64 (N): ID, bit 29 for extended (which lose against standard frames with the same leading bits).
        duration: int64 (N), us.

    Returns:
        Times of completion in order, and the index of the frame that completes.
    """
    n = len(release)
    done = np.empty(n, np.int64)
    order = np.empty(n, np.int64)
    waiting = [(np.int64(0), np.int64(0))]
    waiting.clear()
    now = np.int64(0)
    i = 0
    for j in range(n):
        if len(waiting) == 0:
            now = max(now, release[i])
        while i < n and release[i] <= now:
            priority = (key[i] & 0x1FFFFFFF) * 2 + 1 if key[i] & 0x20000000 else (key[i] & 0x7FF) << 19
            heapq.heappush(waiting, (np.int64(priority), np.int64(i)))
            i += 1
        index = heapq.heappop(waiting)[1]
        now += duration[index]
        done[j] = now
        order[j] = index
    return done, order
