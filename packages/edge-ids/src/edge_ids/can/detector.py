"""The streaming detector as an object: feed frames, get scores and alerts; save the state, go on later."""

# ruff: noqa: N815 - dimensions are suffixes of names, see the legend
from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import write_bytes

from edge_ids.alerts import Alert
from edge_ids.can import engine
from edge_ids.can.engine import DETECTORS, ONE_BIT, State
from edge_ids.can.frames import ERROR, Array, Frames
from edge_ids.can.profile import Profile, key_name, keys_of, payloads

SIGNATURES = {
    "timing": ("frames of this ID come faster than ever in training", "fabrication", 1),
    "format": ("payload lengths, or whole payloads, unlike anything seen for this ID", "malformed", 1),
    "payload-bits": ("payload bits that never changed in training", "payload", 1),
    "payload-jump": ("payload jumps further than in training", "payload", 2),
    "counter": ("the message counter is broken", "masquerade", 1),
    "frozen": ("a payload that always moved stands still", "masquerade", 2),
    "ensemble": ("several weak signs for this ID together", "anomaly", 2),
    "silence": ("an ID or the whole bus fell silent", "suspension", 2),
    "unknown-id": ("identifiers never seen in training", "fuzzing", 1),
    "bus-load": ("more traffic than ever in training", "denial-of-service", 1),
    "checksum": ("the payload's checksum does not fit", "masquerade", 1),
    "cross": ("a value contradicts the same quantity on another ID", "masquerade", 1),
    "repeat": ("payloads repeat what was sent before, in the same order", "masquerade", 2),
    "tiny": ("the tiny network takes these frames for an attack", "anomaly", 2),
}
assert tuple(SIGNATURES) == DETECTORS
STATE_FORMAT = "edge-ids-can-state-3"


@dataclass(frozen=True)
class Detection:
    """One alert of the streaming detector.

    Attributes:
        frame: number of the frame that raised it, counted from the detector's first.
        time_us: its time.
        key: frame key (see `keys_of`), -1 for the whole bus.
        detector: name, one of `DETECTORS`.
        anomaly: not an alert: a detector of payload values in a profile that is not mature.
        level, threshold: sum and threshold in bits; for ``silence`` us; for ``bus-load`` bits per 100 ms.
    """

    frame: int
    time_us: int
    key: int
    detector: str
    level: float
    threshold: float
    anomaly: bool = False

    def alert(self, channel: str = "can0", data: bytes | None = None) -> Alert:
        """As an EVE-shaped alert."""
        text, category, severity = SIGNATURES[self.detector]
        can: dict[str, Any] = {"channel": channel, "id": key_name(self.key), "extended": bool(self.key >= 0 and self.key & 0x20000000)}
        if data is not None:
            can |= {"dlc": len(data), "data": data.hex()}
        return Alert(
            time=self.time_us / 1e6,
            signature_id=DETECTORS.index(self.detector) + 1,
            signature=f"{self.detector}: {text}",
            category=category,
            severity=3 if self.anomaly else severity,  # type: ignore[arg-type]
            fields={"can": can},
            details={"detector": self.detector, "frame": self.frame, "level": self.level, "threshold": self.threshold},
            event_type="anomaly" if self.anomaly else "alert",
        )


@dataclass(frozen=True)
class Scores:
    """What the detector says of each frame.

    Attributes:
        ratio_N: float32, highest sum over its threshold; 1 and more is an alarm; halved where the frame itself added nothing.
        raised_N: int64, bit mask of detectors whose alarm is on and to which the frame adds evidence.
        detections: the alerts and anomalies.
    """

    ratio_N: Array
    raised_N: Array
    detections: list[Detection]


class StreamingDetector:
    """The deployable detector: about ten O(1) checks per frame, constant memory.

    The result does not depend on how frames are cut into calls of `process`.

    Args:
        profile: from `edge_ids.can.profile.train` or `Profile.load`.
    """

    def __init__(self, profile: Profile):
        self.profile = profile
        self.state = engine.new_state(len(profile.keys_K), profile.memories)
        self._out = np.zeros((4096 + len(profile.keys_K), 6), np.int64)

    @property
    def frames(self) -> int:
        """Frames taken so far."""
        return int(self.state.bus[engine.B_FRAMES])

    @property
    def unknown_frames(self) -> int:
        """Frames with an ID that training never saw."""
        return int(self.state.bus[engine.B_UNKNOWN_FRAMES])

    def process(self, frames: Frames) -> Scores:
        """Take frames in order of arrival."""
        error = ((frames.flags & ERROR) > 0).astype(np.int64)
        keys = keys_of(frames, self.profile.channels)
        return self.process_columns(frames.time_us, keys, error, frames.length.astype(np.int64), payloads(frames))

    def process_columns(self, time_us: Array, key: Array, error: Array, length: Array, payload: Array) -> Scores:
        """Take frames as int64 columns (N): time, key (`keys_of`), 1 for error frames, payload bytes, payload (`payloads`)."""
        n = len(time_us)
        ratio, raised = np.zeros(n, np.int64), np.zeros(n, np.int64)
        detections: list[Detection] = []
        start = 0
        while start < n:
            start, found = engine.process(
                self.profile.model, self.state, self.profile.keys_K, time_us, key, error, length, payload, start, ratio, raised, self._out
            )
            detections += self._detections(found)
        return Scores((ratio / 1000).astype(np.float32), raised, detections)

    def feed(self, time_us: int, key: int, error: int, length: int, payload: int) -> tuple[float, int, list[Detection]]:
        """Take one frame; returns ratio, mask of detectors and alerts."""
        n, ratio, raised = engine.step(
            self.profile.model, self.state, self.profile.keys_K, time_us, key, error, length, payload, self._out, 0
        )
        return ratio / 1000, raised, self._detections(n) if n else []

    def tick(self, now_us: int) -> list[Detection]:
        """Let time pass without frames, so that silence is noticed on a bus that says nothing at all."""
        n = engine.tick(self.profile.model, self.state, self.profile.keys_K, now_us, self._out, 0)
        return self._detections(n) if n else []

    def _detections(self, count: int) -> list[Detection]:
        found = []
        for frame, time_us, key, detector, level, threshold in self._out[:count].tolist():
            anomaly, detector = divmod(detector, engine.HINT)
            scale = 1 if detector in (engine.SILENCE, engine.LOAD) else ONE_BIT
            found.append(Detection(frame, time_us, key, DETECTORS[detector], level / scale, threshold / scale, bool(anomaly)))
        return found

    def save_state(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the state atomically; `extra` (plain JSON) comes back from `load_state`."""
        buffer = io.BytesIO()
        meta = {"format": STATE_FORMAT, "profile": self.profile.version, "extra": extra or {}}
        np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **self.state._asdict())
        write_bytes(path, buffer.getvalue())

    def load_state(self, path: str | Path) -> dict[str, Any]:
        """Go on where `save_state` stopped; later alerts are those of an uninterrupted run.

        Raises:
            InputError: if the file is absent, damaged, or belongs to another profile.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                meta = dict(json.loads(arrays["meta"].tobytes()))
                state = State(**{name: np.ascontiguousarray(arrays[name]) for name in State._fields})
        except OSError as error:
            raise InputError(f"cannot read state {path}: {error.strerror or error}") from error
        except Exception as error:  # zip, json and numpy each have their own
            raise InputError(f"{path} is no state of edge-ids can run, or it is damaged") from error
        if meta.get("format") != STATE_FORMAT or meta.get("profile") != self.profile.version:
            raise InputError(f"{path} belongs to another model; remove it or give the model it was made with")
        for mine, other in zip(self.state, state, strict=True):
            if mine.shape != other.shape or other.dtype != np.int64:
                raise InputError(f"{path} does not fit the model (damaged)")
        self.state = state
        return dict(meta.get("extra", {}))

    def reload(self, profile: Profile) -> None:
        """Change the model while running; what is known of the present (last frames, open alarms) is kept per ID."""
        old_profile, old = self.profile, self.state
        fresh = engine.new_state(len(profile.keys_K), profile.memories)
        index = {int(key): k for k, key in enumerate(old_profile.keys_K)}
        for k, key in enumerate(profile.keys_K.tolist()):
            if key in index:
                for name in State._fields:
                    if name not in ("memory_RT", "unknown_U", "features_F", "bus"):
                        getattr(fresh, name)[k] = getattr(old, name)[index[key]]
        fresh.unknown_U[:] = old.unknown_U
        fresh.bus[:] = old.bus
        fresh.bus[engine.B_POINTER] = 0
        self.profile, self.state = profile, fresh
        self._out = np.zeros((4096 + len(profile.keys_K), 6), np.int64)


def detect(profile: Profile, chunks: Iterator[Frames]) -> Iterator[tuple[Frames, Scores]]:
    """Run a fresh detector over chunks of a trace."""
    detector = StreamingDetector(profile)
    for chunk in chunks:
        yield chunk, detector.process(chunk)
