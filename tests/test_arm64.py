"""A Debian arm64 userland gives this machine's outputs: `tests/arm64/compare.py` for real, where it is permitted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = 77


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_arm64_equals_this_machine(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, root / "tests/arm64/compare.py", "--out", tmp_path / "arm64.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    check(json.loads((tmp_path / "arm64.json").read_text()))


def test_the_record_holds_the_bars(root: Path) -> None:
    """What was recorded on arm64: outputs within 1e-5 of the output scale, the same top-1, equal bytes in training, equal C."""
    check(json.loads((root / "benchmarks/results/arm64.json").read_text()))


def check(record: dict) -> None:
    assert record["arm64"]["machine"] == "aarch64"
    for name, found in record["onnx"].items():
        assert found["same_top1"]
        # Fresh weights behind norms that were set on noise magnify rounding: channels that hardly vary are blown up.
        assert found["relative_to_output_scale"] <= (1e-4 if name == "untrained" else 1e-5)
    training = record["fine_tuning"]
    assert training["bytes_arm64"] == training["bytes_x86"]
    assert training["bytes_arm64"]["measured_total_bytes"] == training["bytes_arm64"]["predicted_total_bytes"]
    assert training["train_loss_arm64"] == pytest.approx(training["train_loss_x86"], rel=1e-3)
    assert training["test_accuracy_arm64"] > training["test_accuracy_before"]
    assert set(record["c"]) == {"tinyeeg float", "tinyeeg q15", "mcu-vision int8"}
    assert all(found["equal"] and found["bytes_of_output"] for found in record["c"].values())
