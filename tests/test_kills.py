"""SIGKILL at any moment loses nothing: each command that resumes is killed again and again, and ends where an undisturbed run ends.

Fourteen kills or more of each training command and of a stream, over a hundred in all: `uv run pytest -m slow -n 0 tests/test_kills.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 14
SCRIPTS = Path(sys.executable).parent
TRAINING = {
    "depthprune": "prune --data digits --limit 200 --epochs 2 --finetune-epochs 1 --policy macs --repeats 10",
    "ondevice-train": "fit --data digits --model mcunet-in1 --method medyate --budget 64kB --limit 200 --epochs 3",
    "moofa": "train --data digits --space digits8 --epochs 2 --networks 10",
    "fairnet": "debias --data digits --method voronoi --images 300 --epochs 2",
    "edge-ids": "flow train --data {flows} --model simpleae --epochs 3",
    "tinyeeg": "train --data synthetic",
}


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def metrics(folder: Path) -> Any:
    """What the run found; times and memory differ between any two runs."""
    found = json.loads((folder / "result.json").read_text())["metrics"]

    def stable(value: Any) -> Any:
        if isinstance(value, dict):
            words = ("second", "latency", "time", "speed", "ratio", "_ms", "flows_per", "rss")
            return {key: stable(item) for key, item in value.items() if not any(word in key for word in words)}
        return [stable(item) for item in value] if isinstance(value, list) else value

    return stable(found)


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flows") / "flows.csv"
    subprocess.run([SCRIPTS / "edge-ids", "flow", "generate", "--flows", "1500", "--out", path], check=True, capture_output=True)
    return path


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", TRAINING)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = TRAINING[name]
    if "{flows}" in arguments:
        arguments = arguments.format(flows=request.getfixturevalue("flows"))
    command = [str(SCRIPTS / name), *arguments.split()]
    began = time.monotonic()
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, capture_output=True)
    length = time.monotonic() - began
    wanted, chance, kills, runs = metrics(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        kills += kill_until_done(command, tmp_path / f"killed-{runs}", length, chance)
        assert metrics(tmp_path / f"killed-{runs}") == wanted
    print(f"{name}: {kills} kills in {runs} runs")


def kill_until_done(command: list[str], out: Path, length: float, chance: random.Random) -> int:
    """Kill the run at random moments, at most ten times, and let it end; how often it was killed."""
    kills = 0
    while not (out / "result.json").exists():
        started = (out.with_name(out.name + ".partial") / "config.json").exists()
        verb = command[: next(index for index, word in enumerate(command) if word.startswith("--"))]
        process = start([*verb, "--resume", str(out)] if started else [*command, "--out", str(out)])
        try:
            _, errors = process.communicate(timeout=chance.uniform(0.1, 0.9) * length if kills < 10 else 100 * length + 100)
            assert process.returncode == 0, errors.decode()[-2000:]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    return kills


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("can")
    run = SCRIPTS / "edge-ids"
    for command in (
        f"{run} can generate --out {folder / 'benign'} --seconds 60",
        f"{run} can train --data {folder / 'benign'} --out {folder / 'model'}",
        f"{run} can generate --out {folder / 'attack'} --seconds 60 --seed 1 --attack fabrication:10:50",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_can_stream_raises_the_same_alerts(detector: Path, tmp_path: Path) -> None:
    """At real time times twenty, so that kills fall into the stream; an alert may come twice, none may be lost."""
    command = [
        str(SCRIPTS / "edge-ids"),
        "can",
        "run",
        "--model",
        str(detector / "model"),
        "--replay",
        str(detector / "attack/synthetic.log"),
    ]
    subprocess.run([*command, "--alerts", tmp_path / "whole.jsonl"], check=True, capture_output=True)
    state, alerts, chance = tmp_path / "state", tmp_path / "alerts.jsonl", random.Random(0)
    for kill in range(25):
        process = start([*command, "--alerts", str(alerts), "--state", str(state), "--speed", "20"])
        try:
            _, errors = process.communicate(timeout=chance.uniform(0.5, 6) if kill < 24 else 120)
            assert process.returncode == 0, errors.decode()[-2000:]
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def lines(path: Path) -> set[str]:
        found = set()
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found.add(json.dumps({key: value for key, value in record.items() if key not in ("flow_id", "host")}, sort_keys=True))
        return found

    assert lines(alerts) == lines(tmp_path / "whole.jsonl")
