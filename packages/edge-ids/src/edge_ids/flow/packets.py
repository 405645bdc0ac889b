"""Read pcap and pcapng captures and decode IPv4/IPv6 packets; nothing that a file claims is believed without a bound.

Formats: libpcap file format (micro- and nanosecond, both byte orders) and pcapng (IETF draft-ietf-opsawg-pcapng), plain or gzipped.
"""

from __future__ import annotations

import gzip
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge_shared.errors import InputError

_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
MAGICS = (*_PCAP, _PCAPNG)
LARGEST = 1 << 18
"""Largest packet that libpcap writes (MAXIMUM_SNAPLEN)."""
_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame: seconds since the epoch, link type, captured bytes, bytes on the wire."""

    time: float
    link: int
    data: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet.

    Attributes:
        time: seconds since the epoch.
        src, dst: addresses as text.
        protocol: IP protocol number.
        ttl: time to live or hop limit.
        length: bytes of the IP packet on the wire.
        sport, dport: ports, 0 without.
        flags: TCP flags; 0 for others.
        sequence: TCP sequence number.
        window: TCP window.
        icmp: type * 256 + code, 0 for others.
        payload: bytes after the transport header, as far as captured.
        payload_length: bytes after the transport header on the wire.
    """

    time: float
    src: str
    dst: str
    protocol: int
    ttl: int
    length: int
    sport: int = 0
    dport: int = 0
    flags: int = 0
    sequence: int = 0
    window: int = 0
    icmp: int = 0
    payload: bytes = b""
    payload_length: int = 0


def read_frames(path: str | Path, allow_truncated: bool = False) -> Iterator[Frame]:
    """Read a capture frame by frame.

    Args:
        path: pcap or pcapng file, also gzipped.
        allow_truncated: take a file that ends within a record as far as it goes, instead of raising.

    Raises:
        InputError: for a file that is no capture, impossible sizes, or an end within a record; with the byte offset.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            reader = _Reader(file, path)  # type: ignore[arg-type]
            magic = reader.take(4)
            if magic in _PCAP:
                yield from _pcap(reader, *_PCAP[magic])
            elif magic == _PCAPNG:
                yield from _pcapng(reader)
            else:
                raise InputError(f"{path}: no pcap or pcapng capture (it begins with {magic.hex() or 'nothing'})")
    except _Ends as error:
        if not allow_truncated:
            raise InputError(f"{path}: {error}; --allow-truncated takes what is there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


class _Ends(Exception):
    """The file ends within a record."""


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.offset = file, path, 0

    def take(self, count: int, *, at_end: bool = False) -> bytes:
        """Read `count` bytes; an end right here is allowed with `at_end` and gives nothing."""
        data = self.file.read(count)
        if len(data) < count and not (at_end and not data):
            raise _Ends(f"truncated at byte {self.offset + len(data)}: {count} bytes should follow byte {self.offset}, {len(data)} do")
        self.offset += len(data)
        return data

    def bad(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged at byte {self.offset}: {what}")


def _pcap(reader: _Reader, order: str, unit: float) -> Iterator[Frame]:
    link = struct.unpack(order + "HHiIII", reader.take(20))[5] & 0x0FFFFFFF
    header = struct.Struct(order + "IIII")
    while data := reader.take(16, at_end=True):
        seconds, fraction, captured, length = header.unpack(data)
        if captured > LARGEST:
            raise reader.bad(f"a packet of {captured:,} bytes (at most {LARGEST:,} are possible)")
        yield Frame(seconds + fraction * unit, link, reader.take(captured), length)


def _pcapng(reader: _Reader) -> Iterator[Frame]:
    order = "<"
    interfaces: list[tuple[int, float, int]] = []
    kind = 0x0A0D0D0A
    while True:
        if kind == 0x0A0D0D0A:
            size, magic = reader.take(4), reader.take(4)
            if magic not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                raise reader.bad("a section header without its byte order")
            order = "<" if magic == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
            rest = struct.unpack(order + "I", size)[0] - 12
        else:
            rest = struct.unpack(order + "I", reader.take(4))[0] - 8
        if rest < 4 or rest > _BLOCK or rest % 4:
            raise reader.bad(f"a block of {rest + 8:,} bytes (a multiple of 4 from 12 to {_BLOCK:,} is possible)")
        body = reader.take(rest)[:-4]
        try:
            if kind == 1:
                interfaces.append(_interface(body, order))
            elif kind in (2, 6):
                yield _enhanced(body, order, interfaces)
            elif kind == 3:
                yield Frame(
                    0.0, interfaces[0][0], body[4 : 4 + struct.unpack_from(order + "I", body)[0]], struct.unpack_from(order + "I", body)[0]
                )
        except (struct.error, IndexError) as error:
            raise reader.bad(f"a block of type {kind} that is too short or names no interface") from error
        head = reader.take(4, at_end=True)
        if not head:
            return
        kind = 0x0A0D0D0A if head == _PCAPNG else struct.unpack(order + "I", head)[0]


def _interface(body: bytes, order: str) -> tuple[int, float, int]:
    """(link type, seconds per tick, offset in seconds)."""
    link = struct.unpack_from(order + "H", body)[0]
    unit, offset, place = 1e-6, 0, 8
    while place + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, place)
        value = body[place + 4 : place + 4 + size]
        if code == 0:
            break
        if code == 9 and size == 1:
            unit = 2.0 ** -(value[0] & 0x7F) if value[0] & 0x80 else 10.0 ** -value[0]
        elif code == 14 and size == 8:
            offset = struct.unpack(order + "q", value)[0]
        place += 4 + (size + 3) // 4 * 4
    return link, unit, offset


def _enhanced(body: bytes, order: str, interfaces: list[tuple[int, float, int]]) -> Frame:
    number, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
    link, unit, offset = interfaces[number]
    if captured > len(body) - 20:
        raise IndexError
    return Frame(((high << 32) | low) * unit + offset, link, body[20 : 20 + captured], length)


def decode(frame: Frame) -> Packet | None:
    """The IP packet of a frame; None if there is none or its headers are cut or contradict themselves."""
    try:
        data, kind = _network_layer(frame.link, frame.data)
        if kind == 0x0800:
            return _ipv4(frame, data)
        return _ipv6(frame, data) if kind == 0x86DD else None
    except (struct.error, IndexError, ValueError):
        return None


def _network_layer(link: int, data: bytes) -> tuple[bytes, int]:
    if link in (12, 14, 101, 228, 229):
        return data, 0x86DD if data[0] >> 4 == 6 else 0x0800
    if link in (0, 108):
        return data[4:], 0x86DD if data[4] >> 4 == 6 else 0x0800
    place = {1: 12, 113: 14, 276: 0}.get(link)
    if place is None:
        return b"", 0
    kind = int.from_bytes(data[place : place + 2], "big")
    place = 20 if link == 276 else place + 2
    while kind in (0x8100, 0x88A8, 0x9100):
        kind = int.from_bytes(data[place + 2 : place + 4], "big")
        place += 4
    return data[place:], kind


def _ipv4(frame: Frame, data: bytes) -> Packet | None:
    header = (data[0] & 15) * 4
    if data[0] >> 4 != 4 or header < 20 or len(data) < 20:
        return None
    length, fragment = struct.unpack_from(">H", data, 2)[0], struct.unpack_from(">H", data, 6)[0] & 0x1FFF
    # Segmentation offload leaves the field 0: take what was on the wire.
    length = length or frame.length - (len(frame.data) - len(data))
    ends = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    return _transport(frame.time, *ends, data[9], data[8], length, header, b"" if fragment else data[header:length])


def _ipv6(frame: Frame, data: bytes) -> Packet | None:
    if data[0] >> 4 != 6 or len(data) < 40:
        return None
    length, protocol, place = struct.unpack_from(">H", data, 4)[0] + 40, data[6], 40
    while protocol in (0, 43, 60, 44) and place + 8 <= len(data):
        following, size = data[place], 8 if protocol == 44 else (data[place + 1] + 1) * 8
        if protocol == 44 and struct.unpack_from(">H", data, place + 2)[0] >> 3:
            return _transport(frame.time, *_ends6(data), following, data[7], length, place + 8, b"")
        protocol, place = following, place + size
    return _transport(frame.time, *_ends6(data), protocol, data[7], length, place, data[place:length])


def _ends6(data: bytes) -> tuple[str, str]:
    return socket.inet_ntop(socket.AF_INET6, data[8:24]), socket.inet_ntop(socket.AF_INET6, data[24:40])


def _transport(time: float, src: str, dst: str, protocol: int, ttl: int, length: int, header: int, data: bytes) -> Packet:
    if protocol == 6 and len(data) >= 20:
        sport, dport, sequence = struct.unpack_from(">HHI", data)
        size = max(20, (data[12] >> 4) * 4)
        window = struct.unpack_from(">H", data, 14)[0]
        payload = max(0, length - header - size)
        return Packet(time, src, dst, 6, ttl, length, sport, dport, data[13], sequence, window, 0, data[size:], payload)
    if protocol in (17, 132) and len(data) >= 8:
        sport, dport = struct.unpack_from(">HH", data)
        return Packet(time, src, dst, protocol, ttl, length, sport, dport, payload=data[8:], payload_length=max(0, length - header - 8))
    if protocol in (1, 58) and len(data) >= 2:
        return Packet(time, src, dst, protocol, ttl, length, icmp=data[0] * 256 + data[1])
    return Packet(time, src, dst, protocol, ttl, length)
