"""The README is true: its commands are taken from the text and run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(root: Path) -> list[list[str]]:
    """The commands of each console block; a line that ends in a backslash goes on."""
    texts = BLOCK.findall((root / "README.md").read_text())
    return [
        [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")] for text in texts
    ]


def execute(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a README command in `folder` with the tools of this environment; `uv run X` becomes X."""
    scripts = str(Path(sys.executable).parent)
    command = re.sub(r"^uv run ", "", command)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "100"}
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_two_commands_do_it_all(root: Path) -> None:
    """The first block: one line installs uv and runs the main job, one runs the tests; continuous integration calls that one."""
    first = blocks(root)[0]
    assert len(first) == 2
    assert first[0].startswith("pip install uv && uv run ")
    assert first[1] == "uv run pytest"
    assert first[1] in (root / ".ci/run").read_text().splitlines()


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the main job has run; later examples use what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("readme")
    done = execute(main_job(root), folder)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout.lower()
    assert "Traceback" not in done.stderr
    return folder


def main_job(root: Path) -> str:
    return blocks(root)[0][0].removeprefix("pip install uv && ")


@pytest.mark.timeout(600)
def test_the_main_job(root: Path, folder: Path) -> None:
    out = folder / shlex.split(main_job(root))[-1]
    for name in ("result.json", "report.html", "model.onnx", "model.safetensors", "recipe.json"):
        assert any(out.rglob(name)), name


@pytest.mark.timeout(900)
def test_one_example_per_package(root: Path, folder: Path) -> None:
    ran = set()
    for block in blocks(root)[1:]:
        for command in block:
            done = execute(command, folder)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            ran.add(shlex.split(command.removeprefix("uv run "))[0])
    assert ran == {"depthprune", "ondevice-train", "moofa", "fairnet", "edge-ids", "tinyeeg"}
