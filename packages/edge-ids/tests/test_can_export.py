"""The C99 export against Python, alert by alert, under the host's compiler with all warnings and sanitizers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from edge_ids.can import engine
from edge_ids.can.export import export_c99
from edge_ids.can.frames import Frames, concat, make_frames
from edge_ids.can.generate import generate
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import Profile, keys_of, payloads, train
from edge_ids.cli import app
from edge_shared.cli import run

FLAGS = [
    "-std=c99",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]
compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine")


def attacked(frames: Frames) -> Frames:
    """One attack of each kind that leaves frames, one after the other, then a capture that starts over, odd lengths and remote frames."""
    kinds = [
        ("fuzzing", None), ("fabrication", 0x280), ("masquerade", 0x110), ("masquerade-offset", 0x410), ("masquerade-constant", 0x120),
        ("masquerade-replay", 0x180), ("suspension", 0x290), ("correlated", 0x0D0),
    ]  # fmt: skip
    for number, (kind, target) in enumerate(kinds):
        frames = inject(frames, Attack(kind, 3 + 5 * number, 7 + 5 * number, target), seed=number).frames
    flood = inject(frames, Attack("dos", 46, 48), seed=9).frames
    rng = np.random.default_rng(0)
    odd = make_frames(
        flood.time_us[-1] + np.arange(500) * 700, rng.choice([0x110, 0x280, 0x7FF], 500), rng.integers(0, 256, (500, 8), dtype=np.uint8),
        rng.integers(0, 9, 500), flags=rng.choice([0, 1, 2], 500),
    )  # fmt: skip
    words = (0x10000 + 60 * np.sin(np.arange(3000) / 40)).astype(np.int64)  # around zero, in both byte orders, and around 0x1000
    sines = np.stack([words >> 8, words, words, words >> 8, words + 0x1000 >> 8, words, words * 0 + 3, words * 0 + 9], axis=1).astype(
        np.uint8
    )
    signed = make_frames(odd.time_us[-1] + 90_000_000 + np.arange(3000) * 10_000, np.full(3000, 0x410), sines, 5 + np.arange(3000) // 1000)
    return concat([flood, odd, signed, frames.take(slice(0, 5000))])


@pytest.fixture(scope="module", params=[30, 310], ids=["short training", "mature"])
def trained(request: pytest.FixtureRequest) -> tuple[Profile, Frames]:
    frames, _ = generate(request.param + 50, seed=1)
    cut = frames.time_us < frames.time_us[0] + request.param * 1_000_000
    return train(frames.take(cut)), attacked(frames.take(~cut))


@compiler
def test_c_raises_the_alerts_of_python(trained: tuple[Profile, Frames], tmp_path: Path) -> None:
    profile, frames = trained
    document = export_c99(profile, tmp_path / "c")
    subprocess.run(["gcc", *FLAGS, "edge_ids.c", "main.c", "-o", "detector"], cwd=tmp_path / "c", check=True)
    key, length, payload = keys_of(frames, profile.channels), frames.length.astype(np.int64), payloads(frames)
    error = (np.arange(len(frames)) % 977 == 0).astype(np.int64)
    columns = zip(frames.time_us.tolist(), key.tolist(), error.tolist(), length.tolist(), payload.view(np.uint64).tolist(), strict=True)
    text = "".join(f"{t} {k} {e} {n} {p:016x}\n" for t, k, e, n, p in columns)
    done = subprocess.run([tmp_path / "c" / "detector"], input=text, capture_output=True, text=True, check=True)
    *alerts, summary = done.stdout.splitlines()

    ratio, raised = np.zeros(len(frames), np.int64), np.zeros(len(frames), np.int64)
    out = np.zeros((5000, 6), np.int64)
    state = engine.new_state(len(profile.keys_K), profile.memories)
    _, n = engine.process(profile.model, state, profile.keys_K, frames.time_us, key, error, length, payload, 0, ratio, raised, out)
    assert alerts == [" ".join(map(str, row)) for row in out[:n].tolist()]
    assert len({row[3] % engine.HINT for row in out[:n].tolist()}) >= 5
    mixed = 0
    for number, mask in enumerate(raised.tolist()):
        mixed ^= mask + number + 1
    assert summary.split()[1:4] == [str(len(frames)), str(ratio.sum()), str(mixed)]
    assert int(summary.split()[4]) == document["cost"]["state_bytes"]
    other = subprocess.run([tmp_path / "c" / "detector"], input="(1.0) can0 123#00\n", capture_output=True, text=True, check=False)
    assert (other.returncode, other.stdout, other.stderr[:8]) == (2, "", "frame 1:")


@compiler
def test_c_has_no_heap_no_library_and_no_float(trained: tuple[Profile, Frames], tmp_path: Path) -> None:
    export_c99(trained[0], tmp_path / "c")
    subprocess.run(["gcc", "-std=c99", "-Os", "-ffreestanding", "-c", "edge_ids.c"], cwd=tmp_path / "c", check=True)
    symbols = subprocess.run(["nm", "-u", "edge_ids.o"], cwd=tmp_path / "c", capture_output=True, text=True, check=True).stdout.split()
    assert set(symbols) <= {"U", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
    source = (tmp_path / "c" / "edge_ids.c").read_text() + (tmp_path / "c" / "edge_ids_model.h").read_text()
    assert re.search(r"\b(float|double|malloc|calloc)\b", source) is None


def test_export_command(trained: tuple[Profile, Frames], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    trained[0].save(tmp_path / "model")
    arguments = ["can", "export", "--model", str(tmp_path / "model"), "--target", "c99", "--out", str(tmp_path / "c"), "--json"]
    assert run(app, arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "config.json",
        "edge_ids.c",
        "edge_ids.h",
        "edge_ids_model.h",
        "main.c",
        "result.json",
    ]
    assert document["cost"]["table_bytes"] > 0
    arguments[arguments.index("c99")] = "rust"
    assert run(app, arguments) == 2
    assert "'rust' is unknown" in capsys.readouterr().err
