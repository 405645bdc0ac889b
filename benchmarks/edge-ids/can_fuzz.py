"""Coverage-guided fuzzing of every CAN reader with atheris (not a dependency: ``uv run --with atheris``).

uv run --with atheris python benchmarks/edge-ids/can_fuzz.py [--seconds 60]

The first byte picks the format, the rest is the file. A crash is anything but frames or an `InputError`; libFuzzer's own limits
catch a hang (30 s per input) and memory (2 GB).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"  # instrumented functions are Python: Numba cannot compile them

import atheris

with atheris.instrument_imports(include=["edge_ids.can.readers", "edge_ids.can.road", "can.io"]):
    from edge_ids.can.readers import FORMATS, TraceReader
    from edge_ids.can.readers._binary import SUFFIXES

from edge_shared.errors import InputError

TARGETS = [(name, ".log") for name in FORMATS if name not in ("python-can", "table")]
TARGETS += [("python-can", suffix) for suffix in SUFFIXES if suffix not in (".mf4", ".db")] + [
    ("", ".log"),
    ("", ".log.gz"),
    ("", ".parquet"),
]
FOLDER = Path(tempfile.mkdtemp())


def one(raw: bytes) -> None:
    if not raw:
        return
    format, suffix = TARGETS[raw[0] % len(TARGETS)]
    path = FOLDER / f"input{suffix}"
    path.write_bytes(raw[1:])
    try:
        frames = TraceReader(path, format or None).read()
    except InputError:
        return
    limit = (frames.flags & 1 > 0) * 0x1FFFF800 + 0x7FF
    if (frames.id > limit).any() or (frames.length > frames.data.shape[1]).any():
        raise AssertionError(f"{format or suffix}: a frame that cannot be")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=2048", "-max_len=4096"], one)
    atheris.Fuzz()
