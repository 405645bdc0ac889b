"""Train the streaming detector into a model folder, with an honest look at data it did not see."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.files import open_run, plain, write_json

from edge_ids.can.frames import Frames
from edge_ids.can.profile import Profile, train
from edge_ids.can.selftest import self_test, write_report


def fingerprint(frames: Frames) -> str:
    """Short hash of the frames: times, IDs, payloads and labels."""
    digest = hashlib.sha256()
    for column in (frames.time_us, frames.id, frames.length, frames.data, frames.label):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def train_to(frames: Frames, out: Path, *, source: str = "", malformed: dict[str, int] | None = None) -> dict[str, Any]:
    """Train on all benign frames and write the model folder.

    Args:
        frames: captures; each sorted by time.
        out: folder; an earlier result is replaced.
        source: where the frames are from, for the record.
        malformed: bad lines of the reader, for the record.

    Returns:
        What result.json holds: ``metrics`` (of the held-out last quarter, by a model of the first three; ``attacks`` are
        injected there, see `self_test`), ``profile``, ``cost``, ``artifacts``.
    """
    begin = time.monotonic()
    frames = frames.sorted()
    profile: Profile = train(frames)
    test = self_test(frames)
    metrics: dict[str, Any] = {"false_alarms": None, "benign_seconds": 0.0}
    if test is not None:
        metrics = test.benign | {"benign_seconds": test.benign["benign_hours"] * 3600, "attacks": test.attacks}
    run = open_run(out, None, {"data": source})
    profile.save(run.path)
    size = sum(np.asarray(array).nbytes for array in profile.model)
    result = plain(
        {
            "command": "edge-ids can train",
            "data": {"source": source, "frames": len(frames), "fingerprint": fingerprint(frames), "synthetic": frames.synthetic},
            "malformed": sum((malformed or {}).values()),
            "malformed_by_kind": malformed or {},
            "metrics": metrics,
            "profile": profile.info | {"version": profile.version},
            "cost": {"seconds": time.monotonic() - begin, "model_bytes": size},
            "artifacts": ["profile.json", "profile.npz"],
        }
    )
    result["artifacts"] += write_report(run.path, source, result, test, frames.synthetic)
    write_json(run.path / "result.json", result)
    run.commit()
    return result
