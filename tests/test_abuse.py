"""A full disk, a read-only folder, too little memory: one clear line each, and what was there stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent
WRITERS = [
    "edge-ids can generate --seconds 30 --out {out}",
    "tinyeeg train --data synthetic --out {out}",
]


def run(command: str) -> subprocess.CompletedProcess[str]:
    words = command.split()
    return subprocess.run([str(SCRIPTS / words[0]), *words[1:]], capture_output=True, text=True, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line says why, the exit code says whose fault it is, no traceback."""
    assert done.returncode == 2, done.stderr[-1500:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-1500:]
    assert any(word in errors[0] for word in words), errors[0]
    assert "Traceback" not in done.stderr


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own; skips where mounting is not permitted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
@pytest.mark.parametrize("command", WRITERS, ids=lambda command: "-".join(command.split()[:2]))
def test_disk_full(command: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=8k") as folder:
        before = folder / "kept.txt"
        before.write_text("mine")
        refused(run(command.format(out=folder / "out")), "No space left")
        assert before.read_text() == "mine"
        assert not (folder / "out").exists(), "no half of a result under the final name"


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
@pytest.mark.parametrize("command", WRITERS, ids=lambda command: "-".join(command.split()[:2]))
def test_read_only_folder(command: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as folder:
        refused(run(command.format(out=folder / "out")), "Read-only file system")


def test_too_little_memory() -> None:
    """Torch has no exception class for it; the command says it all the same."""
    code = (
        "import resource, sys, torch; from edge_shared.cli import run; from ondevice_train.cli import app; "
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2); "
        "sys.exit(run(app, ['bench', '--model', 'resnet18', '--input-size', '512', '--batch-size', '64']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    refused(done, "out of memory")
