"""Read CAN traces of many formats into one frame table; bad lines are counted by kind and skipped, never fatal.

Formats: ``candump`` (candump -L, also with label columns), ``candump-verbose``, ``crysys``, ``otids``, ``car-hacking``
(also the In-Vehicle challenge without header), ``csv`` (with a header: can-train-and-test, In-Vehicle, python-can),
``syncan``, ``road-signals``, ``python-can`` (ASC, BLF, TRC, MF4, sqlite), ``table`` (our own Parquet or Arrow file); any of the text
formats may be gzipped.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError

from edge_ids.can.frames import UNLABELLED, Array, Frames, concat, empty_frames, from_polars, make_frames
from edge_ids.can.readers import _binary, _candump, _lines
from edge_ids.can.readers._lines import BadLine, Parser, Row

CHUNK_BYTES = 4 << 20
LONGEST_LINE = 1 << 16
FORMATS = ("candump", *_lines.HEADERLESS, *_lines.WITH_HEADER, "python-can", "table")


class TraceReader:
    """Iterate over a trace in chunks of bounded memory.

    Args:
        path: the file.
        format: one of `FORMATS`; by default it is recognised by suffix and content.

    Attributes:
        format: the format in use.
        malformed: bad lines or messages so far, by kind. ``backward_time`` are frames older than the one before
            them on the same channel.

    Raises:
        InputError: if the file cannot be opened or is no CAN trace; while iterating, if a text file holds no good line at all.
    """

    def __init__(self, path: str | Path, format: str | None = None):
        self.path = Path(path)
        self.malformed: Counter[str] = Counter()
        self._state = np.tile(np.array([-1, 0, 0], np.int64), (256, 1))
        self._classes: dict[str, int] = {"benign": 0, "attack": 1}
        self._channels: dict[str, int] = {}
        self._parser: Parser | None = None
        if format is not None and format not in FORMATS:
            raise InputError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder; give a trace file")
        if not self.path.exists():
            raise InputError(f"{path}: no such file")
        self.format = format or self._recognise()
        if self.format in _lines.HEADERLESS:
            self._parser = _lines.HEADERLESS[self.format]
        elif self.format in _lines.WITH_HEADER:
            first = next((line for line in self._head() if line.strip()), "")
            self._parser = _lines.WITH_HEADER[self.format](first)
            self._skip_header = self._parser is not None and self.format in ("csv", "road-signals")
            if self._parser is None:
                raise InputError(f"{path}:1 has no {self.format} header that names time, ID and data")

    def __iter__(self) -> Iterator[Frames]:
        good = 0
        source = {"candump": self._candump, "python-can": self._binary, "table": self._table}.get(self.format, self._text)
        try:
            for chunk in source():
                keep = np.empty(len(chunk), np.bool_)
                dropped = _candump.keep_monotone(chunk.time_us, chunk.channel, self._state, keep)
                if dropped:
                    self.malformed["backward_time"] += dropped
                    chunk = chunk.take(keep)
                good += len(chunk)
                if len(chunk):
                    yield chunk
        except (OSError, EOFError, zlib.error) as error:
            if not good:
                raise InputError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
            self.malformed["unreadable_rest"] += 1
        if not good and self.malformed:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.malformed.most_common(4))
            raise InputError(f"{self.path} holds no readable CAN frame as {self.format} ({kinds})")

    def read(self) -> Frames:
        """All frames at once; the recording is named after the file."""
        return concat(list(self)) if self.path.stat().st_size else empty_frames()

    # --- recognition

    def _open(self) -> Any:
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")

    def _head(self) -> list[str]:
        try:
            with self._open() as file:
                head = file.read(1 << 16)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
        return head.decode("utf-8-sig", "replace").splitlines()

    def _recognise(self) -> str:
        suffixes = [suffix.lower() for suffix in self.path.suffixes[-2:]]
        if suffixes and suffixes[-1] in (".parquet", ".arrow", ".feather"):
            return "table"
        inner = suffixes[-2] if len(suffixes) == 2 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
        if inner in _binary.SUFFIXES:
            return "python-can"
        lines = [line for line in self._head() if line.strip()][:50]
        if not lines:
            raise InputError(f"{self.path} is empty")
        for name, make in _lines.WITH_HEADER.items():
            if make(lines[0]) is not None:
                return name
        votes = Counter({name: sum(_parses(parser, line) for line in lines) for name, parser in _lines.HEADERLESS.items()})
        votes["candump"] = sum(len(self._parse_candump((line + "\n").encode(), quiet=True)) for line in lines)
        self._channels.clear()
        format, count = votes.most_common(1)[0]
        if not count:
            raise InputError(
                f"{self.path}:1 is no CAN trace that I know (candump -L, HCRL, CrySyS, SynCAN, CSV with header, ASC, BLF, TRC, MF4)"
            )
        return format

    # --- sources

    def _blocks(self) -> Iterator[bytes]:
        """Whole lines, in blocks of a few megabytes; a line longer than 64 KiB is dropped and counted."""
        rest = b""
        skipping = False
        with self._open() as file:
            if (mark := file.read(3)) != b"\xef\xbb\xbf":
                rest = mark
            while block := file.read(CHUNK_BYTES):
                cut = block.rfind(b"\n") + 1
                if skipping:
                    first = block.find(b"\n") + 1
                    if not first:
                        continue
                    block, cut, skipping = block[first:], cut - first, False
                if cut:
                    yield rest + block[:cut]
                    rest = block[cut:]
                else:
                    rest += block
                if len(rest) > LONGEST_LINE:
                    self.malformed["line_too_long"] += 1
                    rest, skipping = b"", True
        if rest:
            yield rest + b"\n"

    def _candump(self) -> Iterator[Frames]:
        for block in self._blocks():
            yield self._parse_candump(block)

    def _parse_candump(self, block: bytes, quiet: bool = False) -> Frames:
        buffer = np.frombuffer(block, np.uint8)
        lines = block.count(b"\n")
        names = np.zeros((_candump.MAX_CHANNELS, 17), np.int64)
        for index, name in enumerate(self._channels):
            raw = name.encode("latin-1")
            names[index, 0] = len(raw)
            names[index, 1 : 1 + len(raw)] = list(raw)
        columns: dict[str, Array] = {
            "time_us": np.empty(lines, np.int64),
            "ids": np.empty(lines, np.uint32),
            "flags": np.empty(lines, np.uint8),
            "length": np.empty(lines, np.uint8),
            "data": np.zeros((lines + 1, 64 if b"##" in block else 8), np.uint8),
            "channel": np.empty(lines, np.uint8),
            "label": np.empty(lines, np.int16),
        }
        bad = np.zeros(len(_candump.KINDS), np.int64)
        n, known = _candump.parse(buffer, _candump.hex_table(), names, len(self._channels), *columns.values(), bad)
        for index in range(len(self._channels), known):
            self._channels[bytes(names[index, 1 : 1 + names[index, 0]].tolist()).decode("latin-1")] = index
        if not quiet:
            self.malformed.update({kind: int(count) for kind, count in zip(_candump.KINDS, bad, strict=True) if count})
        cut = {name: column[:n] for name, column in columns.items()}
        return self._frames(cut.pop("time_us"), cut.pop("ids"), **cut)

    def _frames(self, time_us: Array, ids: Array, *, data: Array, length: Array, flags: Array, channel: Array, label: Array) -> Frames:
        channels = tuple(self._channels) or ("can0",)
        return make_frames(
            time_us, ids, data, length, flags=flags, channel=channel, label=label,
            channels=channels, classes=tuple(self._classes), captures=(self.path.name,),
        )  # fmt: skip

    def _text(self) -> Iterator[Frames]:
        parser = self._parser
        assert parser is not None
        header = getattr(self, "_skip_header", False)
        for block in self._blocks():
            rows: list[Row] = []
            for raw in block.split(b"\n")[:-1]:
                if len(raw) > LONGEST_LINE:
                    self.malformed["line_too_long"] += 1
                    continue
                line = raw.decode("utf-8", "replace").rstrip("\r")
                if header and line.strip():
                    header = False
                    continue
                try:
                    row = parser(line)
                except BadLine as error:
                    self.malformed[str(error)] += 1
                    continue
                if row is not None:
                    rows.append(row)
            yield self._of_rows(rows)

    def _binary(self) -> Iterator[Frames]:
        rows: list[Row] = []
        for row in _binary.rows(self.path, self.malformed):
            rows.append(row)
            if len(rows) == 65536:
                yield self._of_rows(rows)
                rows = []
        yield self._of_rows(rows)

    def _of_rows(self, rows: list[Row]) -> Frames:
        kept = []
        for row in rows:
            if row.channel not in self._channels:
                if len(self._channels) == _candump.MAX_CHANNELS:
                    self.malformed["channel"] += 1
                    continue
                self._channels[row.channel] = len(self._channels)
            if row.label is not None and row.label not in self._classes:
                if len(self._classes) == 64:
                    self.malformed["label"] += 1
                    continue
                self._classes[row.label] = len(self._classes)
            kept.append(row)
        width = 64 if any(len(row.data) > 8 for row in kept) else 8
        return self._frames(
            np.array([row.time_us for row in kept], np.int64),
            np.array([row.id for row in kept], np.uint32),
            data=np.frombuffer(b"".join(row.data.ljust(width, b"\0") for row in kept), np.uint8).reshape(-1, width),
            length=np.array([row.length for row in kept], np.uint8),
            flags=np.array([row.flags for row in kept], np.uint8),
            channel=np.array([self._channels[row.channel] for row in kept], np.uint8),
            label=np.array([UNLABELLED if row.label is None else self._classes[row.label] for row in kept], np.int16),
        )

    def _table(self) -> Iterator[Frames]:
        import polars as pl

        try:
            table = pl.read_parquet(self.path) if self.path.suffix.lower() == ".parquet" else pl.read_ipc(self.path)
        except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
            reason = str(error).splitlines()[0][:120]
            raise InputError(f"cannot read {self.path} as a frame table: {reason}") from error
        frames = from_polars(table, str(self.path))
        for start in range(0, len(frames), 1 << 18):
            yield frames.take(slice(start, start + (1 << 18)))


def _parses(parser: Parser, line: str) -> bool:
    try:
        return parser(line) is not None
    except BadLine:
        return False


def read_frames(path: str | Path, format: str | None = None) -> tuple[Frames, dict[str, int]]:
    """Read a whole trace: frames, and bad lines by kind.

    Raises:
        InputError: no such file, no known format, or no good line.
    """
    reader = TraceReader(path, format)
    frames = reader.read()
    return frames, dict(reader.malformed)
