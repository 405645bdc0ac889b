"""Run the detector: over a recorded trace as fast as possible or at its own pace, or live on a bus.

One loop serves all three. Frames pass through a bounded queue when they come in real time: what does not fit is dropped
and counted, never blocking the bus reader. The state can be saved every few seconds and resumed; the model folder is
watched and reloaded when it changes.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from edge_shared.errors import InputError, require

from edge_ids.alerts import Alert, Metrics
from edge_ids.can import engine
from edge_ids.can.detector import Detection, StreamingDetector
from edge_ids.can.engine import DETECTORS
from edge_ids.can.frames import EXTENDED, Frames, make_frames
from edge_ids.can.metrics import Evaluation
from edge_ids.can.profile import Profile
from edge_ids.can.readers import TraceReader
from edge_ids.can.readers._binary import row_of
from edge_ids.can.readers._lines import BadLine

LATENCY_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
SAVE_SECONDS = 10.0
BATCH = 256  # frames that a live run hands to the engine at once, if so many have arrived


class Sink(Protocol):
    """Where alerts go: `EveWriter`, `SyslogWriter`, or anything with the same two methods."""

    def write(self, alert: Alert) -> None:
        """Take one alert."""

    def close(self) -> None:
        """No more alerts."""


def declare(metrics: Metrics) -> None:
    """Declare what the service exports to Prometheus."""
    metrics.counter("can_frames_total", "Frames seen by the detector.")
    metrics.counter("can_dropped_total", "Frames dropped because the queue was full.")
    metrics.counter("can_malformed_total", "Lines or messages that are no valid frame, by kind.")
    metrics.counter("can_alerts_total", "Alerts by detector.")
    metrics.counter("can_anomalies_total", "Anomalies (findings of detectors that are not mature) by detector.")
    metrics.counter("can_unknown_id_frames_total", "Frames with an ID that training never saw.")
    metrics.counter("can_reloads_total", "Times the model was reloaded.")
    metrics.gauge("can_queue_depth", "Frames waiting in the queue.")
    metrics.gauge("can_known_ids", "IDs in the model.")
    metrics.gauge("can_model_info", "The model in use.")
    metrics.histogram("can_latency_seconds", "From reception of a frame to its verdict.", LATENCY_BUCKETS)


@dataclass
class Service:
    """A running detector with its outputs.

    Attributes:
        model: folder of the profile.
        sinks: where alerts go.
        metrics: exported numbers.
        state: file for the detector's state; loaded at the start if it exists.
        queue: most frames waiting in real-time operation.
        anomalies_too: also send what is no alert; by default anomalies are only counted.
    """

    model: Path
    sinks: list[Sink] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    state: Path | None = None
    queue: int = 65536
    anomalies_too: bool = False

    def __post_init__(self) -> None:
        declare(self.metrics)
        self.detector = StreamingDetector(Profile.load(self.model))
        warm_up(self.detector.profile)
        self.alerts: Counter[str] = Counter()
        self.anomalies: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.dropped = 0
        self.frames = 0
        self.busy = 0.0
        self.reloads = 0
        self.latencies: deque[float] = deque(maxlen=100_000)
        self.skip = 0
        self._stamp = self._model_stamp()
        self._saved = self._checked = time.monotonic()
        self._stop = threading.Event()
        if self.state is not None and self.state.exists():
            self.skip = int(self.detector.load_state(self.state).get("position", 0))
        self.position = self.skip
        self._describe()

    # --- model and state

    def _describe(self) -> None:
        profile = self.detector.profile
        self.metrics.set("can_known_ids", len(profile.keys_K))
        self.metrics._values["can_model_info"].clear()
        self.metrics.set("can_model_info", 1, version=profile.version, mature=str(profile.info.get("mature", False)).lower())

    def _model_stamp(self) -> tuple[int, int]:
        try:
            status = (self.model / "profile.json").stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)

    def reload(self) -> bool:
        """Load the model folder again; a broken or half-written model is refused and the old one stays."""
        self._stamp = self._model_stamp()
        try:
            profile = Profile.load(self.model)
        except InputError as error:
            print(f"warning: model not reloaded: {error}", file=sys.stderr, flush=True)
            return False
        self.detector.reload(profile)
        self.reloads += 1
        self.metrics.add("can_reloads_total")
        self._describe()
        return True

    def save(self) -> None:
        """Save the state, if there is a file for it."""
        if self.state is not None:
            self.detector.save_state(self.state, {"position": self.position})
        self._saved = time.monotonic()

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if now - self._saved >= SAVE_SECONDS:
            self.save()
        if now - self._checked >= 1.0:
            self._checked = now
            stamp = self._model_stamp()
            if stamp != self._stamp and stamp != (0, 0):
                self.reload()

    def stop(self) -> None:
        """End `replay` or `live` after the frame at hand; safe from signal handlers and other threads."""
        self._stop.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop gracefully, SIGHUP reloads (main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        actions: dict[int, Callable[..., Any]] = {signal.SIGINT: lambda *_: self.stop(), signal.SIGTERM: lambda *_: self.stop()}
        if hasattr(signal, "SIGHUP"):
            actions[signal.SIGHUP] = lambda *_: setattr(self, "_stamp", (-1, -1))
        old = {number: signal.signal(number, action) for number, action in actions.items()}
        try:
            yield
        finally:
            for number, action in old.items():
                signal.signal(number, action)

    # --- verdicts

    def _report(self, found: list[Detection], channel: str, data: dict[int, bytes], channels: dict[int, str] | None = None) -> None:
        """Count what was found and send it; `data` and `channels` are of its frames, by number (`channel` where there is none)."""
        known = self.detector.profile.channels
        for detection in found:
            (self.anomalies if detection.anomaly else self.alerts)[detection.detector] += 1
            self.metrics.add("can_anomalies_total" if detection.anomaly else "can_alerts_total", detector=detection.detector)
            if detection.anomaly and not self.anomalies_too:
                continue
            bus = detection.key >> 32 if len(known) > 1 and detection.key >= 0 else len(known)  # a silent ID has no frame of its own
            name = known[bus] if bus < len(known) else (channels or {}).get(detection.frame, channel)
            alert = detection.alert(name, data.get(detection.frame))
            for sink in self.sinks:
                sink.write(alert)

    def _take(self, chunk: Frames, evaluation: Evaluation | None = None) -> None:
        first = self.detector.frames
        begin = time.perf_counter()
        scores = self.detector.process(chunk)
        self.busy += time.perf_counter() - begin
        self.frames += len(chunk)
        self.position += len(chunk)
        rows = {found.frame: found.frame - first for found in scores.detections if 0 <= found.frame - first < len(chunk)}
        data = {frame: chunk.data[row, : chunk.length[row]].tobytes() for frame, row in rows.items()}
        channels = {frame: chunk.channels[chunk.channel[row]] for frame, row in rows.items()}
        self._report(scores.detections, chunk.channels[chunk.channel[0]], data, channels)
        if evaluation is not None and chunk.labelled:
            evaluation.add(chunk, scores)
        self._count()

    def _count(self) -> None:
        self.metrics.set("can_frames_total", self.frames)
        self.metrics.set("can_dropped_total", self.dropped)
        self.metrics.set("can_unknown_id_frames_total", self.detector.unknown_frames)
        for kind, count in self.malformed.items():
            self.metrics.set("can_malformed_total", count, kind=kind)

    # --- sources

    def replay(
        self,
        path: str | Path,
        *,
        speed: float = 0.0,
        format: str | None = None,
        planned: list[tuple[str, int, int]] | None = None,
        relabel: Callable[[Frames], Frames] | None = None,
    ) -> dict[str, Any]:
        """Run over a trace.

        Args:
            path: the file.
            speed: 1 is real time, 10 ten times as fast, 0 as fast as possible.
            format: of the file, if it is not to be recognised.
            planned: attacks that leave no frames to label, see `Evaluation`.
            relabel: gives labels to a chunk (see `edge_ids.can.road.Labeller`).

        Returns:
            The summary, see `summary`.
        """
        reader = TraceReader(path, format)
        evaluation = Evaluation(planned)
        begin = time.monotonic()
        skip = self.skip
        pieces = self._paced(reader, speed) if speed else iter(reader)
        for chunk in pieces:
            if self._stop.is_set():
                break
            chunk = relabel(chunk) if relabel else chunk
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            chunk, skip = (chunk.take(slice(skip, None)), 0) if skip else (chunk, 0)
            self.malformed = Counter(reader.malformed)
            self._take(chunk, evaluation)
            self._housekeeping()
        self.malformed = Counter(reader.malformed)
        self._count()
        self.save()
        return self.summary(time.monotonic() - begin, evaluation if evaluation.frames or planned else None)

    def _paced(self, reader: TraceReader, speed: float) -> Iterator[Frames]:
        """Pieces of 10 ms, each when it is due; a detector that falls behind by more than the queue drops frames."""
        begin, origin, skip = time.monotonic(), None, self.skip
        for chunk in reader:
            if skip >= len(chunk):
                skip -= len(chunk)
                yield chunk
                continue
            origin = int(chunk.time_us[skip]) if origin is None else origin
            edges = np.flatnonzero(np.diff((chunk.time_us - origin) // 10_000) != 0) + 1
            for start, end in zip(np.r_[0, edges], np.r_[edges, len(chunk)], strict=True):
                due = begin + (int(chunk.time_us[end - 1]) - origin) / 1e6 / speed
                while (wait := due - time.monotonic()) > 0 and not self._stop.is_set():
                    self._stop.wait(min(wait, 0.2))
                    self._housekeeping()
                if self._stop.is_set():
                    return
                yield chunk.take(slice(start, end))
            skip = 0

    def live(self, bus: Any, *, duration: float | None = None, channel: str = "can0") -> dict[str, Any]:
        """Run on a python-can bus until stopped.

        Args:
            bus: anything with ``recv(timeout)`` that gives python-can messages.
            duration: seconds; None runs until a signal or `stop`.
            channel: name for the alerts.

        Returns:
            The summary, see `summary`.
        """
        waiting: deque[tuple[float, Any]] = deque()
        arrived = threading.Event()
        failure: list[BaseException] = []

        def receive() -> None:
            while not self._stop.is_set():
                try:
                    message = bus.recv(timeout=0.1)
                except BaseException as error:  # a bus that goes away ends the run with its message
                    failure.append(error)
                    self._stop.set()
                    break
                if message is None:
                    continue
                if len(waiting) >= self.queue:
                    self.dropped += 1
                    continue
                waiting.append((time.perf_counter(), message))
                arrived.set()
            arrived.set()

        switch = sys.getswitchinterval()
        sys.setswitchinterval(2e-4)  # the receiving thread must get the interpreter within a frame time
        reader = threading.Thread(target=receive, name="can-receive", daemon=True)
        begin = time.monotonic()
        offset: float | None = None
        reader.start()
        try:
            while True:
                arrived.wait(0.05)
                arrived.clear()
                if offset is not None and not waiting:
                    self._report(self.detector.tick(round((time.time() + offset) * 1e6)), channel, {})
                while waiting:
                    batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
                    newest = batch[-1][1].timestamp - time.time()
                    offset = newest if offset is None or newest > offset else offset  # of the bus clock, at its least delay
                    self._several([message for _, message in batch], channel)
                    done = time.perf_counter()
                    spent = [done - entered for entered, _ in batch]
                    self.latencies.extend(spent)
                    self.metrics.observe("can_latency_seconds", spent[0], len(spent))  # the first waited longest
                    self._housekeeping()
                self.metrics.set("can_queue_depth", len(waiting))
                self._count()
                self._housekeeping()
                if self._stop.is_set() and not waiting:
                    break
                if duration is not None and time.monotonic() - begin >= duration:
                    self._stop.set()
        finally:
            self._stop.set()
            reader.join(timeout=2)
            sys.setswitchinterval(switch)
            self.save()
        if failure and not isinstance(failure[0], KeyboardInterrupt):
            raise InputError(f"the bus {channel} failed: {failure[0]}") from failure[0]
        return self.summary(time.monotonic() - begin, None)

    def _several(self, messages: list[Any], channel: str) -> None:
        """Take what has arrived, in one call of the engine: what it says does not depend on how frames are cut into calls."""
        profile = self.detector.profile
        rows = []
        for message in messages:
            try:
                rows.append(row_of(message))
            except BadLine as error:
                self.malformed[str(error)] += 1
        if not rows:
            return
        begin = time.perf_counter()
        keys = [row.id | (row.flags & (EXTENDED | 2)) << 29 for row in rows]
        if len(profile.channels) > 1:
            bus = [profile.channels.index(row.channel) if row.channel in profile.channels else len(profile.channels) for row in rows]
            keys = [key | number << 32 for key, number in zip(keys, bus, strict=True)]
        first = self.detector.frames
        payload = np.frombuffer(b"".join([row.data[:8].ljust(8, b"\0") for row in rows]), ">i8").astype(np.int64)
        found = self.detector.process_columns(
            np.array([row.time_us for row in rows], np.int64), np.array(keys, np.int64),
            np.array([int(row.flags & 4 > 0) for row in rows], np.int64), np.array([row.length for row in rows], np.int64), payload,
        ).detections  # fmt: skip
        self.busy += time.perf_counter() - begin
        self.frames += len(rows)
        self.position += len(rows)
        if found:
            self._report(found, channel, {first + number: row.data for number, row in enumerate(rows)})

    def summary(self, seconds: float, evaluation: Evaluation | None) -> dict[str, Any]:
        """What happened, plain values.

        Keys: ``frames, frames_per_second`` (of the detector alone), ``wall_seconds, alerts, alerts_by_detector, anomalies,
        anomalies_by_detector, malformed, malformed_by_kind, dropped, unknown_id_frames, error_frames, reloads, resumed_at``,
        latency quantiles of a live run in microseconds, ``metrics`` (empty without labels), ``cost`` (seconds in all and of the
        detector alone, bytes of its state), ``artifacts`` (files written).
        """
        bus = self.detector.state.bus
        document: dict[str, Any] = {
            "event_type": "summary",
            "frames": self.frames,
            "frames_per_second": self.frames / self.busy if self.busy else None,
            "wall_seconds": seconds,
            "alerts": sum(self.alerts.values()),
            "alerts_by_detector": {name: self.alerts[name] for name in DETECTORS if self.alerts[name]},
            "anomalies": sum(self.anomalies.values()),
            "anomalies_by_detector": {name: self.anomalies[name] for name in DETECTORS if self.anomalies[name]},
            "malformed": sum(self.malformed.values()),
            "malformed_by_kind": dict(self.malformed),
            "dropped": self.dropped,
            "unknown_id_frames": self.detector.unknown_frames,
            "error_frames": int(bus[engine.B_ERRORS]),
            "reloads": self.reloads,
            "resumed_at": self.skip,
            "model": self.detector.profile.version,
            "metrics": {} if evaluation is None else evaluation.result(),
            "cost": {
                "seconds": seconds,
                "detector_seconds": self.busy,
                "state_bytes": sum(array.nbytes for array in self.detector.state),
            },
            "artifacts": [] if self.state is None else [str(self.state)],
        }
        if self.latencies:
            p50, p99, top = np.quantile(np.array(self.latencies), [0.5, 0.99, 1]).tolist()
            document["latency_us"] = {"p50": p50 * 1e6, "p99": p99 * 1e6, "max": top * 1e6}
        return document


def warm_up(profile: Profile) -> None:
    """Compile the engine (or load its machine code) before the first frame, so that no frame waits for it."""
    scratch = StreamingDetector(profile)
    scratch.process(make_frames([0], [0], np.zeros((1, 8), np.uint8)))
    scratch.feed(1, 0, 0, 8, 0)
    scratch.tick(2)


def open_bus(channel: str, interface: str, bitrate: int | None = None) -> Any:
    """Open a python-can bus.

    Raises:
        InputError: if python-can is missing, or the interface or channel cannot be opened.
    """
    require("can", "edge-ids[can]")
    import can

    options: dict[str, Any] = {"bitrate": bitrate} if bitrate else {}
    try:
        return can.Bus(channel=channel, interface=interface, **options)
    except Exception as error:  # each interface has its own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        hint = ""
        if interface == "socketcan":
            number = error.errno if isinstance(error, OSError) else getattr(error, "error_code", None)
            hint = {
                errno.EAFNOSUPPORT: "; this kernel has no SocketCAN: load it (modprobe can_raw), or take another --interface",
                errno.ENODEV: f"; there is no such CAN interface: see `ip link show type can`, or make a virtual one with "
                f"`ip link add dev {channel} type vcan`",
                errno.ENETDOWN: f"; it is down: `ip link set {channel} up`",
            }.get(number or 0, "")
        raise InputError(f"cannot open {interface} channel {channel}: {reason}{hint}") from error
