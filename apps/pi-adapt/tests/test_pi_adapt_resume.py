"""Killed in every stage (SIGKILL), a run goes on to the same networks and figures."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from pi_adapt.config import AdaptConfig
from pi_adapt.pipeline import STAGES, adapt

CONFIG = AdaptConfig(
    limit=50, epochs=3, finetune_epochs=1, gate_epochs=2, personal_epochs=3, personal_lr=0.001, networks=10, repeats=10, tolerance=1.0
)
# In each stage, the file whose coming shows that the stage is at work.
AT_WORK = {
    "data": "config.json",
    "pick": "2-pick/supernet/phase-0.safetensors",
    "shorten": "3-shorten/checkpoints/finetune-1/checkpoint.safetensors",
    "audit": "4-audit",
    "personalise": "5-personalise/checkpoint.safetensors",
    "export": "6-export/model",
}
# Every run is a process of its own, forked from one that has imported what the stages need.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([f"pi_adapt.stages.{name}" for name in STAGES] + ["onnxscript", "moofa.workflow", "ondevice_train.fit"])


def start(*arguments: Any, **options: Any) -> BaseProcess:
    process = PROCESSES.Process(target=adapt, args=arguments, kwargs=options)
    process.start()
    return process


def kill_when(process: BaseProcess, file: Path) -> None:
    end = time.monotonic() + 240
    while not file.exists():
        assert process.is_alive(), f"it ended before {file} came"
        assert time.monotonic() < end, f"{file} never came"
        time.sleep(0.002)
    process.kill()
    process.join()


def facts(value: Any) -> Any:
    """A record without what is timed."""
    if isinstance(value, dict):
        return {key: facts(item) for key, item in value.items() if "second" not in key and "latency" not in key}
    return [facts(item) for item in value] if isinstance(value, list) else value


def weights(out: Path) -> dict[str, str]:
    files = sorted(out.glob("*-*/model/model.safetensors"))
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_every_stage(tmp_path: Path) -> None:
    whole = start(CONFIG, tmp_path / "whole")
    whole.join(600)
    assert whole.exitcode == 0
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    process = start(CONFIG, out)
    for number, (stage, file) in enumerate(AT_WORK.items(), 1):
        kill_when(process, partial / file)
        assert not (partial / f"{number}-{stage}" / "stage.json").exists(), f"{stage} was over before it was killed"
        process = start(CONFIG, resume=out)
    process.join(600)
    assert process.exitcode == 0
    records = [json.loads((folder / "result.json").read_text())["metrics"]["stages"] for folder in (tmp_path / "whole", out)]
    assert facts(records[0]) == facts(records[1])
    assert len(weights(out)) == 5
    assert weights(tmp_path / "whole") == weights(out)
