"""Text formats other than candump -L: one small parser per format, each gives a frame or names what is wrong."""

from __future__ import annotations

import base64
import binascii
import csv
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from edge_ids.can.frames import ERROR, EXTENDED, FD, FD_LENGTHS, REMOTE


class BadLine(Exception):
    """A line that is no frame; the argument is the kind that is counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One frame as a text parser gives it."""

    time_us: int
    id: int
    flags: int
    data: bytes
    length: int
    label: str | None = None
    channel: str = "can0"


Parser = Callable[[str], Row | None]  # None: a header or blank line
_BENIGN = frozenset({"r", "0", "normal", "benign", "false", "0.0", "attack_free", "attack-free"})
_ATTACK = frozenset({"t", "1", "attack", "true", "1.0"})


def parse_time(text: str, factor: float = 1e6) -> int:
    """Seconds (or, by `factor`, another unit) as text to whole microseconds."""
    text = text.strip()
    whole, dot, fraction = text.partition(".")
    if factor == 1e6 and whole.isdecimal() and len(whole) <= 12 and (not dot or fraction.isdecimal()):
        return int(whole) * 1_000_000 + int(fraction[:6].ljust(6, "0") or 0)  # exact, unlike float64 at 1e9 s
    try:
        value = float(text) * factor
    except ValueError:
        raise BadLine("time") from None
    if "_" in text or not math.isfinite(value) or not 0 <= value < 1e18:
        raise BadLine("time")
    return round(value)


def parse_id(text: str, extended: bool | None = None) -> tuple[int, int]:
    """Hexadecimal ID to (number, flags); more than four digits or a value above 0x7FF in 8 digits is extended."""
    text = text.strip().removeprefix("0x").removeprefix("0X")
    if not 1 <= len(text) <= 8 or not _HEX.fullmatch(text):
        raise BadLine("id")
    value = int(text, 16)
    if extended is None:
        extended = len(text) > 4
    if value > (0x1FFFFFFF if extended else 0x7FF):
        raise BadLine("id")
    return value, EXTENDED if extended else 0


_HEX = re.compile(r"[0-9A-Fa-f]+")


def parse_bytes(parts: list[str]) -> bytes:
    """Hexadecimal bytes of one or two digits."""
    if any(len(part) > 2 or not _HEX.fullmatch(part) for part in parts):  # int() would take +f and digits of other scripts
        raise BadLine("not_hex")
    return bytes([int(part, 16) for part in parts])


def parse_hex(text: str) -> bytes:
    """A run of hexadecimal digits, or bytes separated by blanks."""
    parts = text.split()
    if len(parts) > 1:
        return parse_bytes(parts)
    text = "".join(parts).removeprefix("0x")
    if len(text) % 2:
        raise BadLine("odd_hex")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadLine("not_hex") from None


def parse_label(text: str) -> str | None:
    """A label column: R, 0, Normal are benign; T, 1, Attack are an attack; any other word is a class of its own."""
    lowered = text.strip().lower()
    if not lowered:
        return None
    if lowered in _BENIGN:
        return "benign"
    if lowered in _ATTACK:
        return "attack"
    if len(lowered) > 40 or not re.fullmatch(r"[a-z0-9_ .+-]+", lowered) or lowered.replace(".", "").isdecimal():
        raise BadLine("label")
    return lowered


def check_length(text: str, data: bytes, fd: bool = False) -> int:
    """A length column, in whole bytes, that must agree with the payload."""
    try:
        length = int(text)
    except ValueError:
        raise BadLine("length") from None
    if length != len(data):
        raise BadLine("length")
    if len(data) > 8 and not (fd and len(data) in FD_LENGTHS):
        raise BadLine("too_long")
    return length


def crysys(line: str) -> Row | None:
    """CrySyS columns: ``1483093132.049686  0380  000  8  30 bb 82 ...``: time, ID, flags, length, bytes."""
    parts = line.split()
    if not parts:
        return None
    if len(parts) < 4:
        raise BadLine("truncated")
    time_us = parse_time(parts[0])
    ident, flags = parse_id(parts[1])
    data = parse_bytes(parts[4:])
    return Row(time_us, ident, flags, data, check_length(parts[3], data))


_OTIDS = re.compile(r"\s*Timestamp:\s*(\S+)\s+ID:\s*(\S+)\s+(\S+)\s+DLC:\s*(\d+)((?:\s+\S+)*)\s*")


def otids(line: str) -> Row | None:
    """HCRL text logs: ``Timestamp: 1479121434.850202  ID: 0350  000  DLC: 8  05 28 84 66 6d 00 00 a2``."""
    if not line.strip():
        return None
    match = _OTIDS.fullmatch(line)
    if match is None:
        raise BadLine("truncated" if "Timestamp:" in line else "no_separator")
    time_us = parse_time(match[1])
    ident, flags = parse_id(match[2])
    if match[3] not in ("000", "100"):
        raise BadLine("flags")
    if match[3] == "100":  # a remote frame: a length, no bytes
        if match[5].strip() or int(match[4]) > 8:
            raise BadLine("length")
        return Row(time_us, ident, flags | REMOTE, b"", int(match[4]))
    data = parse_bytes(match[5].split())
    return Row(time_us, ident, flags, data, check_length(match[4], data))


_VERBOSE = re.compile(r"\s*\(([^)]*)\)\s+(\S{1,16})\s+(?:[RT]X\s+(?:[-BE]+\s+)*)?([0-9A-Fa-f]+)\s+\[ *(\d+) *\]\s*(.*)")


def candump_verbose(line: str) -> Row | None:
    """candump with a time but without -L: ``(1398128223.803317)  can0  166   [4]  D0 32 00 09``."""
    if not line.strip():
        return None
    match = _VERBOSE.fullmatch(line.rstrip())
    if match is None:
        raise BadLine("no_separator")
    time_us = parse_time(match[1])
    ident, flags = parse_id(match[3], extended=len(match[3]) > 4)
    text = match[5].strip()
    if text.startswith("remote"):
        return Row(time_us, ident, flags | REMOTE, b"", min(int(match[4]), 8), channel=match[2])
    data = parse_bytes(text.split("'")[0].split())
    fd = len(match[4]) == 2 and len(data) > 8
    return Row(time_us, ident, flags | (FD if fd else 0), data, check_length(match[4], data, fd), channel=match[2])


def car_hacking(line: str) -> Row | None:
    """HCRL Car-Hacking CSV, no header, width by DLC: ``1478198376.389427,0316,8,05,21,68,09,21,21,00,6f,R``."""
    parts = [part.strip() for part in line.split(",")]
    if parts == [""]:
        return None
    if len(parts) < 3:
        raise BadLine("truncated")
    time_us = parse_time(parts[0])
    ident, flags = parse_id(parts[1])
    rest = parts[3:]
    label = None
    if rest and len(rest[0].split()) > 1:  # In-Vehicle challenge: the bytes in one column
        rest = rest[0].split() + rest[1:]
    while rest and not rest[-1]:
        rest.pop()
    if rest and (rest[-1].upper() in ("R", "T") or len(rest) == _number(parts[2]) + 1):
        label = parse_label(rest.pop())
        if label is not None and len(label) == 1:
            raise BadLine("label")  # a flag that is neither R nor T
    data = parse_bytes(rest)
    return Row(time_us, ident, flags, data, check_length(parts[2], data), label)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 4 else -2


_ROLES = {
    "time": ("timestamp", "time", "time_stamp", "timestamps"),
    "id": ("arbitration_id", "arbitrationid", "can_id", "canid", "id", "can id", "arbitration id"),
    "length": ("dlc", "length", "len"),
    "data": ("data_field", "data", "payload", "datafield", "data field"),
    "label": ("attack", "label", "class", "flag", "type"),
    "detail": ("subclass", "attack_type", "sub_class"),
    "extended": ("extended",),
    "remote": ("remote",),
    "error": ("error",),
    "channel": ("channel", "interface", "bus"),
}


def header_csv(header: str) -> Parser | None:
    """A parser for a CSV with a header line that names time, ID and data; None if it does not.

    Covers can-train-and-test (timestamp, arbitration_id, data_field, attack), the In-Vehicle challenge
    (Timestamp, Arbitration_ID, DLC, Data, Class, SubClass) and python-can's own CSV (payload in base64).
    """
    names = [name.strip().strip('"').lower() for name in header.split(",")]
    where = {role: next((names.index(name) for name in options if name in names), None) for role, options in _ROLES.items()}
    single = [names.index(f"data{i}") for i in range(8) if f"data{i}" in names]
    if where["time"] is None or where["id"] is None or (where["data"] is None and len(single) != 8):
        return None
    as_base64 = {"extended", "remote", "error", "dlc"} <= set(names)
    column = {role: index for role, index in where.items() if index is not None}

    def parser(line: str) -> Row | None:
        if not line.strip():
            return None
        try:
            parts = next(csv.reader([line], strict=True))
        except csv.Error:
            raise BadLine("quotes") from None
        if len(parts) != len(names):
            raise BadLine("truncated" if len(parts) < len(names) else "extra_columns")

        def truth(role: str) -> bool:
            return role in column and parts[column[role]].strip().lower() in ("1", "true")

        time_us = parse_time(parts[column["time"]])
        ident, flags = parse_id(parts[column["id"]], extended=truth("extended") if "extended" in column else None)
        flags |= (REMOTE if truth("remote") else 0) | (ERROR if truth("error") else 0)
        if as_base64:
            try:
                data = base64.b64decode(parts[column["data"]], validate=True)
            except (binascii.Error, ValueError):
                raise BadLine("not_base64") from None
        elif "data" in column:
            data = parse_hex(parts[column["data"]])
        else:
            data = parse_bytes([parts[i] for i in single if parts[i].strip()])
        if flags & REMOTE:
            length = _number(parts[column["length"]]) if "length" in column else 0
            if not 0 <= length <= 8:
                raise BadLine("length")
            data = b""
        else:
            length = check_length(parts[column["length"]] if "length" in column else str(len(data)), data, fd=as_base64)
        flags |= FD if len(data) > 8 else 0
        label = parse_label(parts[column["label"]]) if "label" in column else None
        if label == "attack" and "detail" in column:
            label = parse_label(parts[column["detail"]]) or label
        return Row(time_us, ident, flags, data, length, label, parts[column["channel"]].strip()[:16] if "channel" in column else "can0")

    return parser


def syncan(header: str) -> Parser | None:
    """SynCAN: ``Label,Time,ID,Signal1_of_ID,...``, time in ms, IDs ``id1`` to ``id10``, signals in [0, 1].

    There are no payload bytes in SynCAN; each signal becomes a big-endian 16-bit number, ``round(65535 * value)``
    clipped to that range, so that frame-level tools can run. The public test files have no header; then
    a line starts with the label.
    """
    first = [name.strip().lower() for name in header.split(",")]
    has_header = first[:3] == ["label", "time", "id"] and len(first) > 3 and re.match(r"signal\d", first[3]) is not None
    if not has_header and not re.fullmatch(r"\s*[01](?:\.0)?,[0-9.eE+-]+,id\d+,.*", header.strip()):
        return None

    def parser(line: str) -> Row | None:
        parts = [part.strip() for part in line.split(",")]
        if parts == [""] or parts[0].lower() == "label":
            return None
        if len(parts) < 4:
            raise BadLine("truncated")
        if not re.fullmatch(r"id\d{1,3}", parts[2]):
            raise BadLine("id")
        values = []
        for text in parts[3:7]:
            if not text or text.lower() == "nan":
                continue
            try:
                value = float(text)
            except ValueError:
                raise BadLine("signal") from None
            if not math.isfinite(value):
                raise BadLine("signal")
            values.append(min(max(round(65535 * value), 0), 65535))
        data = b"".join(value.to_bytes(2, "big") for value in values)
        return Row(parse_time(parts[1], 1e3), int(parts[2][2:]), 0, data, len(data), parse_label(parts[0]))

    return parser


def ordered16(value: float) -> int:
    """A number as 16 bits that keep its order: sign, exponent and seven bits of the fraction, as bfloat16 has them.

    It needs no range of the signal, so files that are read one by one agree; steps below 1/256 of a value are lost.
    """
    (bits,) = struct.unpack(">I", struct.pack(">f", min(max(value, -3.4e38), 3.4e38)))
    return (0xFFFFFFFF - bits if bits >> 31 else bits | 0x80000000) >> 16


def road_signals(header: str) -> Parser | None:
    """ROAD's signal extractions: ``Label,Time,ID,Signal_1_of_ID,...`` in any order; ID decimal, time in seconds.

    There are no payload bytes; each signal becomes 16 bits (`ordered16`), up to 32 signals, of which the streaming detector
    sees the first four. `edge_ids.can.road.read_signals` gives the numbers themselves.
    """
    names = [name.strip().lower() for name in header.split(",")]
    signals = sorted((int(match[1]), index) for index, name in enumerate(names) if (match := re.fullmatch(r"signal_(\d{1,3})_of_id", name)))
    if not signals or not {"label", "time", "id"} <= set(names) or len(names) != len(signals) + 3:
        return None
    label_at, time_at, id_at = (names.index(name) for name in ("label", "time", "id"))

    def parser(line: str) -> Row | None:
        parts = [part.strip() for part in line.split(",")]
        if parts == [""]:
            return None
        if len(parts) != len(names):
            raise BadLine("truncated" if len(parts) < len(names) else "extra_columns")
        ident = parts[id_at].removesuffix(".0")
        if not ident.isdecimal() or len(ident) > 9 or int(ident) > 0x1FFFFFFF:
            raise BadLine("id")
        values = []
        for _, index in signals[:32]:
            if not parts[index] or parts[index].lower() == "nan":
                continue  # this ID has fewer signals
            try:
                value = float(parts[index])
            except ValueError:
                raise BadLine("signal") from None
            if not math.isfinite(value):
                raise BadLine("signal")
            values.append(ordered16(value))
        data = b"".join(value.to_bytes(2, "big") for value in values)
        length = next(size for size in FD_LENGTHS if size >= len(data))
        flags = (EXTENDED if int(ident) > 0x7FF else 0) | (FD if length > 8 else 0)
        return Row(parse_time(parts[time_at]), int(ident), flags, data.ljust(length, b"\0"), length, parse_label(parts[label_at]))

    return parser


HEADERLESS: dict[str, Parser] = {
    "candump-verbose": candump_verbose,
    "crysys": crysys,
    "otids": otids,
    "car-hacking": car_hacking,
}
WITH_HEADER: dict[str, Callable[[str], Parser | None]] = {"syncan": syncan, "road-signals": road_signals, "csv": header_csv}
