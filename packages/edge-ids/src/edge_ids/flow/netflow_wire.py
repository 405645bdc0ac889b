"""NetFlow v5, NetFlow v9 (RFC 3954) and IPFIX (RFC 7011) datagrams to flows of schema ``conn``; nothing that a datagram claims is believed without a bound.

Anyone can send a UDP datagram: whatever is wrong with one is counted and passed over. Templates are kept per exporter, the least recently used ones go first.
The PyPI package ``netflow`` reads the same formats, but keeps templates without a limit and has had no release since 2023.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_ids.flow.schema import SCHEMAS
from edge_ids.flow.table import FlowTable

VERSIONS = {5: "netflow-v5", 9: "netflow-v9", 10: "ipfix"}
"""Extractor ids by version number: the three count differently (v5 one way, IPFIX often both), so a model takes one of them."""
TEMPLATES, FIELDS = 4096, 256
_DAY = 86_400.0
_REVERSE = 29_305  # RFC 5103
_VARIABLE = 65_535

# Information elements by what they are here: (enterprise, number).
_WANTED: dict[tuple[int, int], str] = {
    (0, 8): "src", (0, 27): "src", (0, 12): "dst", (0, 28): "dst", (0, 7): "sport", (0, 11): "dport", (0, 4): "protocol", (0, 6): "flags",
    (0, 1): "in_bytes", (0, 85): "in_bytes", (0, 2): "in_packets", (0, 86): "in_packets", (0, 23): "out_bytes", (0, 24): "out_packets",
    (_REVERSE, 1): "out_bytes", (_REVERSE, 85): "out_bytes", (_REVERSE, 2): "out_packets", (_REVERSE, 86): "out_packets",
    (0, 22): "first_uptime", (0, 21): "last_uptime", (0, 150): "first_seconds", (0, 151): "last_seconds", (0, 152): "first_ms",
    (0, 153): "last_ms",
}  # fmt: skip


class _Malformed(Exception):
    """A datagram or set that contradicts itself."""


@dataclass(slots=True)
class Flow:
    """One exported flow: times in seconds since the epoch, bytes and packets of both ways (0 where only one is exported)."""

    src: str
    dst: str
    start: float
    end: float
    sport: int = 0
    dport: int = 0
    protocol: int = 0
    flags: int = 0
    in_bytes: int = 0
    in_packets: int = 0
    out_bytes: int = 0
    out_packets: int = 0


@dataclass
class Counts:
    """What a decoder met.

    Attributes:
        datagrams: taken in.
        flows: found in them.
        malformed: datagrams that contradict themselves; the flows before the fault count.
        other_version: datagrams of a version that is not asked for.
        unknown_template: data sets before their template (usual in the first minutes).
        no_address: records, or whole sets of a template, without both addresses.
        templates: known now.
    """

    datagrams: int = 0
    flows: int = 0
    malformed: int = 0
    other_version: int = 0
    unknown_template: int = 0
    no_address: int = 0
    templates: int = 0


@dataclass(frozen=True, slots=True)
class _Template:
    fields: tuple[tuple[str | None, int], ...]
    least: int
    options: bool


class Decoder:
    """Decode datagrams of one version, or of all.

    Args:
        accept: an extractor id of `VERSIONS`, or None for the first version that comes.
    """

    def __init__(self, accept: str | None = None) -> None:
        self.accept = accept
        self.counts = Counts()
        self._templates: OrderedDict[tuple[str, int, int, int], _Template] = OrderedDict()

    def decode(self, data: bytes, exporter: str, received: float) -> list[Flow]:
        """Flows of one datagram that came from the address `exporter` at the time `received`; never raises."""
        counts = self.counts
        counts.datagrams += 1
        version = int.from_bytes(data[:2], "big")
        name = VERSIONS.get(version)
        if len(data) < 16 or name is None:
            counts.malformed += 1
            return []
        if self.accept is not None and name != self.accept:
            counts.other_version += 1
            return []
        reader = {5: self._v5, 9: self._v9, 10: self._ipfix}[version]
        found: list[Flow] = []
        try:
            for flow in reader(data, exporter, received):
                found.append(flow)
        except (_Malformed, struct.error):
            counts.malformed += 1
        if found:
            self.accept = name
        counts.flows += len(found)
        counts.templates = len(self._templates)
        return found

    def _v5(self, data: bytes, exporter: str, received: float) -> Iterator[Flow]:
        count, uptime, seconds, nanoseconds = struct.unpack_from(">HIII", data, 2)
        if not 0 < count <= 30 or len(data) < 24 + 48 * count:
            raise _Malformed
        boot = seconds + nanoseconds / 1e9 - uptime / 1000
        for place in range(24, 24 + 48 * count, 48):
            src, dst, packets, octets, first, last = struct.unpack_from(">4s4s8xIIII", data, place)
            sport, dport, flags, protocol = struct.unpack_from(">HHxBB", data, place + 32)
            times = _times(boot + first / 1000, boot + last / 1000, received)
            yield Flow(_address(src), _address(dst), *times, sport, dport, protocol, flags, octets, packets)

    def _v9(self, data: bytes, exporter: str, received: float) -> Iterator[Flow]:
        _, uptime, seconds, _, source = struct.unpack_from(">HIIII", data, 2)
        yield from self._sets(data[20:], (exporter, 9, source), seconds - uptime / 1000, received)

    def _ipfix(self, data: bytes, exporter: str, received: float) -> Iterator[Flow]:
        length, _, _, domain = struct.unpack_from(">HIII", data, 2)
        if not 16 <= length <= len(data):
            raise _Malformed
        yield from self._sets(data[16:length], (exporter, 10, domain), None, received)

    def _sets(self, data: bytes, scope: tuple[str, int, int], boot: float | None, received: float) -> Iterator[Flow]:
        place = 0
        while place + 4 <= len(data):
            number, length = struct.unpack_from(">HH", data, place)
            if length < 4 or place + length > len(data):
                raise _Malformed
            body = data[place + 4 : place + length]
            place += length
            ipfix = scope[1] == 10
            if number == (2 if ipfix else 0):
                self._learn(body, scope, options=False)
            elif number == (3 if ipfix else 1):
                self._learn(body, scope, options=True)
            elif number >= 256:
                template = self._templates.get((*scope, number))
                if template is None:
                    self.counts.unknown_template += 1
                    continue
                self._templates.move_to_end((*scope, number))
                if template.options:
                    continue
                if {"src", "dst"} - {name for name, _ in template.fields}:
                    self.counts.no_address += 1
                else:
                    yield from self._records(body, template, boot, received)

    def _learn(self, body: bytes, scope: tuple[str, int, int], *, options: bool) -> None:
        ipfix, place = scope[1] == 10, 0
        # Up to three bytes may be padding.
        while place + 4 <= len(body):
            number, count = struct.unpack_from(">HH", body, place)
            place += 4
            if number < 256:
                if number == 0:
                    return
                raise _Malformed
            if ipfix and count == 0:
                self._templates.pop((*scope, number), None)
                continue
            if options:
                if ipfix:
                    place += 2
                else:
                    # v9 counts bytes of scope and of options here, not fields.
                    (more,) = struct.unpack_from(">H", body, place)
                    place, count = place + 2, (count + more) // 4
            if count > FIELDS:
                raise _Malformed
            fields: list[tuple[str | None, int]] = []
            for _ in range(count):
                kind, length = struct.unpack_from(">HH", body, place)
                place, enterprise = place + 4, 0
                if ipfix and kind & 0x8000:
                    enterprise, kind, place = struct.unpack_from(">I", body, place)[0], kind & 0x7FFF, place + 4
                fields.append((_WANTED.get((enterprise, kind)), length))
            least = sum(1 if length == _VARIABLE and ipfix else length for _, length in fields)
            if not least:
                raise _Malformed
            self._templates[(*scope, number)] = _Template(tuple(fields), least, options)
            self._templates.move_to_end((*scope, number))
            if len(self._templates) > TEMPLATES:
                self._templates.popitem(last=False)

    def _records(self, body: bytes, template: _Template, boot: float | None, received: float) -> Iterator[Flow]:
        place = 0
        while place + template.least <= len(body):
            values: dict[str, int] = {}
            ends: dict[str, str] = {}
            for name, length in template.fields:
                if length == _VARIABLE and boot is None:
                    if place >= len(body):
                        raise _Malformed
                    length, place = body[place], place + 1
                    if length == 255:
                        length, place = struct.unpack_from(">H", body, place)[0], place + 2
                if place + length > len(body):
                    raise _Malformed
                if name in ("src", "dst"):
                    if length in (4, 16) and any(body[place : place + length]):
                        ends[name] = _address(body[place : place + length])
                elif name is not None and length <= 8:
                    values[name] = int.from_bytes(body[place : place + length], "big")
                place += length
            if len(ends) < 2:
                self.counts.no_address += 1
                continue
            start, end = _span(values, boot, received)
            known = {name: values[name] for name in values if not name.startswith(("first_", "last_"))}
            yield Flow(ends["src"], ends["dst"], start, end, **known)


def _span(values: dict[str, int], boot: float | None, received: float) -> tuple[float, float]:
    for unit, factor in (("ms", 1e-3), ("seconds", 1.0)):
        if f"first_{unit}" in values and f"last_{unit}" in values:
            return _times(values[f"first_{unit}"] * factor, values[f"last_{unit}"] * factor, received)
    if boot is not None and "first_uptime" in values and "last_uptime" in values:
        return _times(boot + values["first_uptime"] / 1000, boot + values["last_uptime"] / 1000, received)
    return received, received


def _times(start: float, end: float, received: float) -> tuple[float, float]:
    """A clock that is wrong by more than a day, or runs ahead, does not move the stream's own: the flow then ended when it came."""
    length = min(max(end - start, 0.0), _DAY)
    if not received - _DAY <= end <= received:
        end = received
    return end - length, end


def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def flows_table(flows: list[Flow], extractor: str) -> FlowTable:
    """Flows as a table of schema ``conn``."""
    hosts, codes = np.unique(np.array([flow.src for flow in flows] + [flow.dst for flow in flows]), return_inverse=True)
    src, dst = np.split(codes.astype(np.int32), 2)
    rows = []
    for flow in flows:
        # ACK was seen: somebody answered. RST without data: refused.
        refused = bool(flow.flags & 4) and flow.in_packets + flow.out_packets <= 2
        established = flow.protocol == 6 and bool(flow.flags & 16) and not refused
        rows.append([
            flow.sport, flow.dport, flow.protocol, flow.end - flow.start, flow.in_bytes, flow.out_bytes, flow.in_packets, flow.out_packets,
            flow.in_bytes / max(flow.in_packets, 1), flow.out_bytes / max(flow.out_packets, 1), float(established), float(refused),
        ])  # fmt: skip
    start, end = np.array([flow.start for flow in flows]), np.array([flow.end for flow in flows])
    return FlowTable(SCHEMAS["conn"], extractor, hosts, src, dst, np.array(rows, float), start=start, end=end)
