"""Our own flow meter: packets to bidirectional flows with the 41 features of NF-v2, under the extractor id `EXTRACTOR`.

It follows the column descriptions of NF-v2, not nProbe's code, so a model trained on nProbe's CSVs refuses these flows. Known differences: L7_PROTO is 0 (there is no
deep packet inspection here); the two SECOND_BYTES columns are bytes per second, not nProbe's concatenated digits.

A flow ends 0.5 s of flow time after FIN from both sides or RST, after `idle` seconds without a packet, or after `active` seconds (what goes on is the next flow).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError

from edge_ids.flow.packets import Packet, decode, read_frames
from edge_ids.flow.schema import SCHEMAS
from edge_ids.flow.table import FlowTable

EXTRACTOR = "edge-ids-meter-1"
_BINS = (128, 256, 512, 1024, 1514)
_CLOSED = 0.5


@dataclass(slots=True)
class _Way:
    """One direction of a flow."""

    bytes: int = 0
    packets: int = 0
    flags: int = 0
    window: int = 0
    first: float = 0.0
    last: float = 0.0
    next_sequence: int | None = None
    again_bytes: int = 0
    again_packets: int = 0

    def add(self, packet: Packet) -> None:
        if not self.packets:
            self.first = packet.time
        self.last = max(self.last, packet.time)
        self.packets += 1
        self.bytes += packet.length
        self.flags |= packet.flags
        self.window = max(self.window, packet.window)
        if packet.protocol != 6:
            return
        span = packet.payload_length + bool(packet.flags & 2) + bool(packet.flags & 1)
        end = (packet.sequence + span) & 0xFFFFFFFF
        if span and self.next_sequence is not None and ((end - self.next_sequence - 1) & 0xFFFFFFFF) >= 1 << 31:
            # All of it lies before what was seen already: sent again.
            self.again_bytes += packet.length
            self.again_packets += 1
        else:
            self.next_sequence = end

    @property
    def duration(self) -> float:
        return max(0.0, self.last - self.first)


@dataclass(slots=True)
class OpenFlow:
    """A flow that is still open; the client is who sent the first packet."""

    first: Packet
    start: float
    last: float
    out: _Way = field(default_factory=_Way)
    back: _Way = field(default_factory=_Way)
    ttl: tuple[int, int] = (255, 0)
    size: tuple[int, int] = (65_535, 0)
    bins: list[int] = field(default_factory=lambda: [0] * 5)
    icmp: int = 0
    dns: tuple[int, int, int] = (0, 0, 0)
    ftp: int = 0
    finished: bool = False

    def add(self, packet: Packet, outward: bool) -> None:
        """Count a packet of the client (`outward`) or of the server."""
        self.last = max(self.last, packet.time)
        (self.out if outward else self.back).add(packet)
        self.ttl = (min(self.ttl[0], packet.ttl), max(self.ttl[1], packet.ttl))
        self.size = (min(self.size[0], packet.length), max(self.size[1], packet.length))
        self.bins[min(int(np.searchsorted(_BINS, packet.length)), 4)] += 1
        self.icmp = self.icmp or packet.icmp
        if 53 in (packet.sport, packet.dport) and packet.protocol == 17:
            self.dns = _dns(packet.payload, self.dns)
        if packet.sport == 21 and packet.payload[:3].isdigit():
            self.ftp = int(packet.payload[:3])
        if packet.flags & 4 or (self.out.flags & 1 and self.back.flags & 1):
            self.finished = True

    def row(self) -> list[float]:
        """The features of NF-v2, in order."""
        a, b = self.out, self.back
        duration = self.last - self.start
        ways = [way.bytes / max(way.duration, 1.0) for way in (a, b)]
        speeds = [8 * way.bytes / max(way.duration, 1e-3) for way in (a, b)]
        return [
            self.first.sport, self.first.dport, self.first.protocol, 0, a.bytes, a.packets, b.bytes, b.packets, a.flags | b.flags,
            a.flags, b.flags, 1000 * duration, 1000 * a.duration, 1000 * b.duration, *self.ttl, self.size[1], self.size[0], *self.size, *ways,
            a.again_bytes, a.again_packets, b.again_bytes, b.again_packets, *speeds, *self.bins, a.window, b.window,
            self.icmp, self.icmp >> 8, *self.dns, self.ftp,
        ]  # fmt: skip


class FlowMeter:
    """Packets in, finished flows out, in the order in which they finish; at most `capacity` flows are open.

    Args:
        idle: seconds without a packet that end a flow.
        active: seconds after which a flow is reported though it goes on.
        capacity: open flows; the one that was quiet longest is reported early when there are more.
    """

    def __init__(self, idle: float = 30.0, active: float = 120.0, capacity: int = 65_536) -> None:
        self.idle, self.active, self.capacity = idle, active, capacity
        self._open: OrderedDict[tuple[str, int, str, int, int], OpenFlow] = OrderedDict()
        self._now = -np.inf
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, packet: Packet) -> list[OpenFlow]:
        """Take a packet in; returns the flows that this ends."""
        done = self.expire(packet.time)
        key = (packet.src, packet.sport, packet.dst, packet.dport, packet.protocol)
        reverse = (packet.dst, packet.dport, packet.src, packet.sport, packet.protocol)
        outward = key in self._open or reverse not in self._open
        used = key if outward else reverse
        flow = self._open.get(used)
        if flow is not None and self._over(flow, packet):
            done.append(self._open.pop(used))
            flow, outward, used = None, True, key
        if flow is None:
            if len(self._open) >= self.capacity:
                done.append(self._open.popitem(last=False)[1])
                self.evicted += 1
            flow = self._open[used] = OpenFlow(packet, packet.time, packet.time)
        flow.add(packet, outward)
        self._open.move_to_end(used)
        return done

    def _over(self, flow: OpenFlow, packet: Packet) -> bool:
        new_connection = flow.finished and packet.flags & 0x12 == 2
        return new_connection or packet.time - flow.start > self.active or packet.time - flow.last > self.idle

    def expire(self, now: float) -> list[OpenFlow]:
        """End the flows that are over at the time `now`."""
        # A clock that jumps back does not bring flows back to life.
        self._now = max(self._now, now)
        done = []
        while self._open:
            key, flow = next(iter(self._open.items()))
            if self._now - flow.last <= (_CLOSED if flow.finished else self.idle):
                break
            done.append(self._open.pop(key))
        return done

    def flush(self) -> list[OpenFlow]:
        """End all flows."""
        done = list(self._open.values())
        self._open.clear()
        return done


def meter(packets: Iterable[Packet], batch: int, **settings: float) -> Iterator[FlowTable]:
    """Flows of `packets` as tables of at most `batch`; `settings` are those of `FlowMeter`."""
    machine = FlowMeter(**settings)  # type: ignore[arg-type]
    done: list[OpenFlow] = []
    for packet in packets:
        done += machine.add(packet)
        while len(done) >= batch:
            yield flows_table(done[:batch])
            done = done[batch:]
    done += machine.flush()
    for start in range(0, len(done), batch):
        yield flows_table(done[start : start + batch])


def read_pcap(path: str | Path, batch: int = 200_000, *, allow_truncated: bool = False, **settings: float) -> Iterator[FlowTable]:
    """Read a capture as flows.

    Raises:
        InputError: if it is no capture, damaged, truncated (unless `allow_truncated`), or holds no IP packet at all.
    """
    frames = found = 0

    def packets() -> Iterator[Packet]:
        nonlocal frames, found
        for frame in read_frames(path, allow_truncated):
            frames += 1
            packet = decode(frame)
            if packet is not None:
                found += 1
                yield packet

    yield from meter(packets(), batch, **settings)
    if not found:
        raise InputError(f"{path}: {frames} frames, none of them an IP packet; capture Ethernet, raw IP, Linux cooked or loopback links")


def flows_table(flows: list[OpenFlow]) -> FlowTable:
    """Ended flows as a table."""
    ends = [flow.first.src for flow in flows] + [flow.first.dst for flow in flows]
    hosts, codes = np.unique(np.array(ends), return_inverse=True)
    src, dst = np.split(codes.astype(np.int32), 2)
    features = np.array([flow.row() for flow in flows], float)
    start, last = np.array([flow.start for flow in flows]), np.array([flow.last for flow in flows])
    return FlowTable(SCHEMAS["nf-v2"], EXTRACTOR, hosts, src, dst, features, start=start, end=last)


def _dns(payload: bytes, known: tuple[int, int, int]) -> tuple[int, int, int]:
    """(query id, query type, time to live of the first address record), keeping what is known already."""
    if len(payload) < 12:
        return known
    questions, answers = int.from_bytes(payload[4:6], "big"), int.from_bytes(payload[6:8], "big")
    number, kind, ttl = known[0] or int.from_bytes(payload[:2], "big"), known[1], known[2]
    place = 12
    for index in range(min(questions, 4)):
        place = _skip_name(payload, place)
        if index == 0 and not kind and place + 2 <= len(payload):
            kind = int.from_bytes(payload[place : place + 2], "big")
        place += 4
    for _ in range(min(answers, 16)):
        place = _skip_name(payload, place)
        if ttl or place + 10 > len(payload):
            break
        if int.from_bytes(payload[place : place + 2], "big") == 1:
            ttl = int.from_bytes(payload[place + 4 : place + 8], "big")
        place += 10 + int.from_bytes(payload[place + 8 : place + 10], "big")
    return number, kind, ttl


def _skip_name(payload: bytes, place: int) -> int:
    for _ in range(128):
        if place >= len(payload):
            break
        size = payload[place]
        if size >= 0xC0:
            return place + 2
        place += 1 + size
        if not size:
            break
    return place
