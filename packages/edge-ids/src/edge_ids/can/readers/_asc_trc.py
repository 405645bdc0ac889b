"""ASC and TRC, read by python-can a line at a time: a bad line costs that line, not the rest of the file.

python-can ends a file at the first line that it cannot parse, and takes lines that hold no whole frame: fewer or more bytes
than the length says, bytes of one digit. Here it goes on after the first kind, and the second is held against what is written.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from edge_ids.can.readers._lines import BadLine

LONGEST_LINE = 1 << 16
_ASC_HEADER = re.compile(r"//|date\s|base\s|(?:no\s+)?internal\s+events|(?:begin|end)\s+trigger", re.IGNORECASE)
_ASC_CUT = re.compile(r"\S+\s+\d+(?:\s+[0-9A-F]+x?(?:\s+[RT]x?)?)?", re.IGNORECASE)
_ASC_DATA = re.compile(r"\S+\s+\d+\s+\S+\s+[RT]x\s+d\s+(\w+)((?:\s+\w+)*?)(?:\s+(?:Length|BitCount|ID)\s*=.*|\s*//.*)?", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+\)?\s+\d+(?:\.\d*)?(?:\s|$)")
_BYTE = re.compile(r"[0-9A-Fa-f]{2}")


class Lines:
    """A text file as python-can iterates over it, which remembers the lines that went into the present frame."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._next: list[str] = []
        self._taken: list[str] = []

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if self._next:
            return self._next.pop()
        line = self._file.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        text = line.decode("utf-8", "replace")
        self._taken.append(text.strip())
        return text

    def push(self, line: str) -> None:
        """The next line that python-can gets, ahead of the file."""
        self._next.append(line)

    def taken(self) -> list[str]:
        """Lines of the file since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def close(self) -> None:
        """python-can closes what it has read to the end."""


def messages(reader: Any, lines: Lines, malformed: Counter[str]) -> Iterator[Any]:
    """Yield the messages of python-can's ASC or TRC reader on `lines`; lines that are no frame are counted."""
    asc = type(reader).__name__ == "ASCReader"
    passed_over = _asc_passed_over if asc else _trc_passed_over
    logging.getLogger(type(reader).__module__).addFilter(_counted)
    iterator = iter(reader)
    while True:
        message = error = None
        try:
            message = next(iterator, None)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as raised:
            error = raised
        taken = lines.taken()
        last = taken.pop() if taken and (message is not None or error is not None) else ""
        malformed.update(kind for line in taken if (kind := passed_over(reader, line)))
        if error is not None:
            if not last:
                raise error  # not about a line
            malformed["truncated" if "unpack" in str(error) else "not_hex" if re.search("base|hex|byte", str(error)) else "unreadable"] += 1
            if asc:
                lines.push("internal events logged\n")  # ends the header that python-can expects whenever it starts
            iterator = iter(reader)
        elif message is None:
            return
        else:
            try:
                _hold_against(reader, message, last, asc)
            except BadLine as bad:
                malformed[str(bad)] += 1
                continue
            yield message


def _counted(record: logging.LogRecord) -> bool:
    """Drop python-can's warning about a line: it is in the counts, and a bad file would fill the terminal."""
    return "Failed to parse" not in record.msg and "mismatch" not in record.msg


def _asc_passed_over(reader: Any, line: str) -> str | None:
    """What is wrong with a line without a frame; None for comments, headers and other events."""
    if not line or _ASC_HEADER.match(line):
        return None
    if not re.match(r"\d+\.\d+(?:\s|$)", line):
        return "time"
    return "truncated" if _ASC_CUT.fullmatch(line) else None


def _trc_passed_over(reader: Any, line: str) -> str | None:
    if not line or line.startswith(";"):
        return None
    if not _NUMBERED.match(line):
        return "time"
    if reader.columns:
        frame = re.search(r"\s(?:DT|F[DBE]|BI|RR)(?:\s|$)", line)
    elif reader.file_version.value < 101:
        return None if "FFFFFFFF" in line else "truncated"  # without a type, every other line is a frame
    else:
        frame = re.search(r"\s[RT]x(?:\s|$)", line)
    return "truncated" if frame else None


def _hold_against(reader: Any, message: Any, line: str, asc: bool) -> None:
    """Compare the payload that python-can understood with what the line says.

    Raises:
        BadLine: naming the difference.
    """
    if message.is_remote_frame or message.is_error_frame:
        return
    if asc:
        match = _ASC_DATA.fullmatch(line)
        if match is None or message.is_fd:  # CAN FD has more columns behind the payload
            if len(message.data) != message.dlc:
                raise BadLine("truncated")
            return
        written, length = match[2].split(), min(message.dlc, 8)
        decimal = reader.base == "dec"
    else:
        words = line.split()
        columns = reader.columns
        first = columns["D"] if columns else {101: 5, 103: 7}.get(reader.file_version.value, 4)
        written, length, decimal = words[first:], message.dlc, False
        if columns:
            from can.util import dlc2len

            length = dlc2len(message.dlc)
    if not decimal and not all(map(_BYTE.fullmatch, written)):
        raise BadLine("odd_hex")
    if len(written) > 8 and not message.is_fd:
        raise BadLine("too_long")
    if len(written) != length:
        raise BadLine("truncated" if len(written) < length else "length")
