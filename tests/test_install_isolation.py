"""From built wheels, in a fresh environment: each package installs and works with edge-shared alone.

Each package by plain pip: `uv run pytest -m slow tests/test_install_isolation.py`. One of them by uv, and what torch packages bring, each time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

LIGHT = ["moofa", "fairnet", "edge-ids", "tinyeeg"]
TORCH = ["depthprune", "ondevice-train"]
NETWORK = {"resolution": 32, "stem": {"out": 8}, "blocks": [{"kernel": 3, "expand": 4, "out": 8}], "classes": 10}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path")
    done = run(uv, "build", "--all-packages", "--wheel", "--out-dir", folder, cwd=root)
    assert done.returncode == 0, done.stderr
    return folder


def installed(wheels: Path, folder: Path, name: str) -> Path:
    """A fresh environment with that package alone; returns its folder of scripts."""
    venv.create(folder, with_pip=True)
    scripts = folder / "bin"
    wheel = next(wheels.glob(f"{name.replace('-', '_')}-*.whl"))
    done = run(scripts / "python", "-m", "pip", "install", "--quiet", "--find-links", wheels, wheel)
    assert done.returncode == 0, done.stderr
    return scripts


def packages(scripts: Path) -> set[str]:
    done = run(scripts / "python", "-m", "pip", "list", "--format", "json")
    return {item["name"].lower() for item in json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LIGHT + TORCH)
def test_each_package_alone(wheels: Path, tmp_path: Path, name: str) -> None:
    scripts = installed(wheels, tmp_path / "venv", name)
    present = packages(scripts)
    assert "edge-shared" in present
    assert not present & {"depthprune", "ondevice-train", "moofa", "fairnet", "edge-ids", "tinyeeg"} - {name}
    assert ("torch" in present) == (name in TORCH)
    assert "torch-geometric" not in present
    assert ("mne" in present) == (name == "tinyeeg")
    done = run(scripts / name, "--help")
    assert done.returncode == 0, done.stderr
    assert run(scripts / name, "--version").stdout.startswith(name)


@pytest.mark.timeout(600)
def test_without_torch_a_command_says_what_it_needs(wheels: Path, tmp_path: Path) -> None:
    """moofa profiles without torch; what needs torch names the extra, in one line, with exit code 2."""
    scripts = tmp_path / "venv" / "bin"
    wheel = next(wheels.glob("moofa-*.whl"))
    for command in (("venv", tmp_path / "venv"), ("pip", "install", "--python", scripts / "python", "--find-links", wheels, wheel)):
        done = run(shutil.which("uv"), *command, "--quiet")
        assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/torch"))
    (tmp_path / "net.json").write_text(json.dumps(NETWORK))
    done = run(scripts / "moofa", "profile", tmp_path / "net.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["macs"] > 0
    done = run(scripts / "moofa", "train", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "moofa[torch]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", TORCH)
def test_a_torch_package_brings_no_stranger(wheels: Path, name: str) -> None:
    """Resolution only: neither mne nor torch-geometric nor another package of ours comes along."""
    wheel = next(wheels.glob(f"{name.replace('-', '_')}-*.whl"))
    requirement = f"{name} @ {wheel.as_uri()}\n"
    done = run(
        shutil.which("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--find-links", wheels, "-", input=requirement
    )
    assert done.returncode == 0, done.stderr
    names = {line.split("==")[0].split(" @")[0].strip().lower() for line in done.stdout.splitlines() if line.strip()}
    assert {"edge-shared", "torch"} <= names
    assert not names & {"mne", "torch-geometric", "moofa", "fairnet", "edge-ids", "tinyeeg", "peft"}
