"""Write frame tables: candump, Car-Hacking CSV, Parquet or Arrow, and what python-can writes (ASC, BLF, TRC)."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require
from edge_shared.files import atomic_path

from edge_ids.can.frames import ERROR, EXTENDED, FD, REMOTE, Frames

SUFFIXES = (".log", ".log.gz", ".csv", ".csv.gz", ".parquet", ".arrow", ".asc", ".blf", ".trc")


def candump(frames: Frames) -> str:
    """candump -L lines; labels are not written (they go into a metadata file or a Parquet table)."""
    lines = []
    hexes = frames.data.tobytes().hex().upper()
    width = 2 * frames.data.shape[1]
    columns = zip(
        frames.time_us.tolist(), frames.id.tolist(), frames.flags.tolist(), frames.length.tolist(), frames.channel.tolist(), strict=True
    )
    for row, (time, ident, flags, length, channel) in enumerate(columns):
        if flags & ERROR:
            ident |= 0x20000000
        name = f"{ident:08X}" if flags & (EXTENDED | ERROR) else f"{ident:03X}"
        if flags & REMOTE:
            body = "#R" + (str(length) if length else "")
        else:
            body = ("##0" if flags & FD else "#") + hexes[row * width : row * width + 2 * length]
        lines.append(f"({time // 1_000_000}.{time % 1_000_000:06d}) {frames.channels[channel]} {name}{body}\n")
    return "".join(lines)


def car_hacking(frames: Frames) -> str:
    """HCRL Car-Hacking CSV: time, ID, DLC, bytes, R (benign or unlabelled) or T (attack). No remote, error or FD frames."""
    if (frames.flags & (REMOTE | ERROR | FD)).any():
        raise InputError("Car-Hacking CSV has no remote, error or FD frames; write .log or .parquet")
    lines = []
    for time, ident, flags, length, label, data in zip(
        frames.time_us.tolist(),
        frames.id.tolist(),
        frames.flags.tolist(),
        frames.length.tolist(),
        frames.label.tolist(),
        frames.data,
        strict=True,
    ):
        name = f"{ident:08x}" if flags & EXTENDED else f"{ident:04x}"
        parts = [f"{time // 1_000_000}.{time % 1_000_000:06d}", name, str(length), *[f"{byte:02x}" for byte in data[:length].tolist()]]
        lines.append(",".join([*parts, "T" if label > 0 else "R"]) + "\n")
    return "".join(lines)


def write_frames(frames: Frames, path: str | Path) -> Path:
    """Write a table to a file, by suffix, atomically.

    Raises:
        InputError: for a suffix that is not known, or frames that the format cannot hold.
    """
    path = Path(path)
    name = path.name.lower()
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)
    if suffix is None:
        raise InputError(f"{path}: cannot write that format; use one of {', '.join(SUFFIXES)}")
    text: dict[str, Callable[[Frames], str]] = {".log": candump, ".csv": car_hacking}
    inner = suffix.removesuffix(".gz")
    with atomic_path(path) as temporary:
        if inner in text:
            raw = text[inner](frames).encode()
            temporary.write_bytes(gzip.compress(raw, mtime=0) if suffix.endswith(".gz") else raw)
        elif suffix == ".parquet":
            frames.to_polars().write_parquet(temporary)
        elif suffix == ".arrow":
            frames.to_polars().write_ipc(temporary)
        else:
            _python_can(frames, temporary, suffix)
    return path


def _python_can(frames: Frames, path: Path, suffix: str) -> None:
    require("can", "edge-ids[can]")
    import can

    named = path.with_name(path.name + suffix)  # the writer is chosen by suffix
    try:
        with can.Logger(named) as logger:
            for message in messages(frames):
                logger.on_message_received(message)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)


def messages(frames: Frames) -> Any:
    """Iterate over the frames as python-can messages."""
    import can

    for row in range(len(frames)):
        flags, length = int(frames.flags[row]), int(frames.length[row])
        yield can.Message(
            timestamp=int(frames.time_us[row]) / 1e6,
            arbitration_id=int(frames.id[row]),
            is_extended_id=bool(flags & EXTENDED),
            is_remote_frame=bool(flags & REMOTE),
            is_error_frame=bool(flags & ERROR),
            is_fd=bool(flags & FD),
            dlc=length,
            data=None if flags & REMOTE else frames.data[row, :length].tobytes(),
            channel=_channel(frames.channels[frames.channel[row]]),
        )


def _channel(name: str) -> int:
    digits = "".join(c for c in name if c.isdecimal())
    return min(int(digits), 255) if digits and len(digits) < 4 else 0


def summary(frames: Frames) -> dict[str, Any]:
    """What a trace holds: counts, times, IDs with their periods, labels; plain values."""
    ids = []
    for key in np.unique(frames.key):
        rows = np.flatnonzero(frames.key == key)
        intervals = np.diff(frames.time_us[rows])[np.diff(frames.capture[rows]) == 0] / 1000
        ids.append(
            {
                "id": f"0x{int(key) & 0x1FFFFFFF:X}",
                "extended": bool(key & EXTENDED << 29),
                "frames": len(rows),
                "lengths": sorted(set(frames.length[rows].tolist())),
                "median_period_ms": float(np.median(intervals)) if len(intervals) else None,
                "std_ms": float(intervals.std()) if len(intervals) else None,
                "payloads": len(np.unique(frames.data[rows], axis=0)),
            }
        )
    seconds = frames.seconds
    labels = {name: int((frames.label == code).sum()) for code, name in enumerate(frames.classes) if (frames.label == code).any()}
    return {
        "frames": len(frames),
        "seconds": seconds,
        "frames_per_second": len(frames) / seconds if seconds else None,
        "channels": sorted({frames.channels[code] for code in np.unique(frames.channel).tolist()}),
        "captures": len(np.unique(frames.capture)),
        "extended": int((frames.flags & EXTENDED > 0).sum()),
        "remote": int((frames.flags & REMOTE > 0).sum()),
        "error": int((frames.flags & ERROR > 0).sum()),
        "fd": int((frames.flags & FD > 0).sum()),
        "labels": labels,
        "synthetic": frames.synthetic,
        "ids": ids,
    }
