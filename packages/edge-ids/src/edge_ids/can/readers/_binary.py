"""Formats that python-can reads (ASC, BLF, TRC, MF4, sqlite), made safe: a watchdog, and errors that are counted."""

from __future__ import annotations

import gzip
import math
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_shared.errors import InputError, require

from edge_ids.can.frames import ERROR, EXTENDED, FD, FD_LENGTHS, REMOTE
from edge_ids.can.readers._asc_trc import Lines, messages
from edge_ids.can.readers._lines import BadLine, Row

SUFFIXES = (".asc", ".blf", ".trc", ".mf4", ".db")
STALL_SECONDS = 20.0


def row_of(message: Any) -> Row:
    """A python-can message as a row.

    Raises:
        BadLine: an ID, a time or a length that no CAN frame has.
    """
    limit = 0x1FFFFFFF if message.is_extended_id else 0x7FF
    if not 0 <= message.arbitration_id <= limit:
        if not message.is_error_frame:
            raise BadLine("id")
        message.arbitration_id &= limit
    if message.timestamp is None or not math.isfinite(message.timestamp) or not 0 <= message.timestamp < 1e12:
        raise BadLine("time")
    data = b"" if message.is_remote_frame else bytes(message.data or b"")
    length = int(message.dlc) if message.is_remote_frame else len(data)
    if length > 8 and not (message.is_fd and length in FD_LENGTHS):
        if not (message.is_remote_frame and length <= 15):
            raise BadLine("too_long")
        length = 8  # DLC 9 to 15 of a classic frame means 8
    flags = (
        (EXTENDED if message.is_extended_id else 0)
        | (REMOTE if message.is_remote_frame else 0)
        | (ERROR if message.is_error_frame else 0)
        | (FD if message.is_fd else 0)
    )
    channel = "can0" if message.channel is None else str(message.channel)[:16]
    return Row(round(message.timestamp * 1e6), message.arbitration_id, flags, data, length, channel=channel)


class _Stalled(Exception):
    pass


@contextmanager
def _watchdog() -> Iterator[Any]:
    """Yield ``alive()``; raise `_Stalled` when it has not been called for `STALL_SECONDS` (main thread on POSIX only)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield lambda: None
        return

    def stop(number: int, frame: Any) -> None:
        raise _Stalled

    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, STALL_SECONDS)
        yield lambda: signal.setitimer(signal.ITIMER_REAL, STALL_SECONDS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def _messages(path: Path, malformed: Counter[str]) -> Iterator[Iterator[Any]]:
    """python-can's messages of a file that is closed even if its reader cannot be made."""
    import can
    from can.io.player import MESSAGE_READERS

    gz = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if gz else path.suffix.lower()
    if suffix not in (".asc", ".blf", ".trc"):  # these readers open other files, or the name itself
        with can.LogReader(path) as reader:
            yield iter(reader)
        return
    with gzip.open(path, "rb") if gz else path.open("rb") as raw:
        make: Any = MESSAGE_READERS[suffix]
        if suffix == ".blf":
            yield iter(make(raw))
        else:
            lines = Lines(raw)  # type: ignore[arg-type]
            yield messages(make(lines), lines, malformed)


def rows(path: Path, malformed: Counter[str]) -> Iterator[Row]:
    """Yield the frames of a file that python-can can open; what it stumbles over is counted in `malformed`.

    A bad line of ASC and TRC is skipped. Elsewhere a corrupt object that makes python-can's parser give up ends the file
    there: kind ``unreadable_rest``. A parser that makes no progress for 20 s is stopped: ``stalled``.

    Raises:
        InputError: if not a single frame could be read, or an optional dependency is missing.
    """
    require("can", "edge-ids[can]")
    if ".mf4" in path.suffixes:
        require("asammdf", "edge-ids[can,mf4]")
    read = 0
    try:
        with _watchdog() as alive, _messages(path, malformed) as found:
            for message in found:
                read += 1
                if read % 1000 == 0:
                    alive()
                try:
                    yield row_of(message)
                except BadLine as error:
                    malformed[str(error)] += 1
    except _Stalled:
        malformed["stalled"] += 1
    except InputError:
        raise
    except Exception as error:  # python-can raises whatever its parsers happen to raise
        if not read:
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise InputError(f"{path} cannot be read as {path.suffix.lstrip('.')}: {reason}") from error
        malformed["unreadable_rest"] += 1
