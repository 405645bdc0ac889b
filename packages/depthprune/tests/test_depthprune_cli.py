"""The commands as a user runs them: results, resuming after a kill, and one clear line for every bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from depthprune.cli import app
from edge_shared.cli import run
from torch import nn

FAST = [
    "--epochs",
    "2",
    "--finetune-epochs",
    "1",
    "--tolerance",
    "1",
    "--repeats",
    "20",
    "--limit",
    "128",
    "--policy",
    "macs",
    "--batch-size",
    "32",
]


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run(app, list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prune") / "run"
    assert run(app, ["prune", "--data", "digits", "--out", str(folder), "--layers", "8", *FAST]) == 0
    return folder


def test_prune_leaves_a_whole_result(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    metrics, cost = result["metrics"], result["cost"]
    assert len(metrics["removed"]) == 8
    assert cost["layers_before"] == 15
    assert cost["layers_after"] == 6
    assert cost["macs_after"] < cost["macs_before"]
    assert cost["peak_bytes_after"] < cost["peak_bytes_before"]
    assert [c["mode"] for c in metrics["certificates"]] == ["front-pad"] * 4
    assert all(c["max_abs_random"] < 1e-10 for c in metrics["certificates"])
    assert all(error < 1e-4 for error in metrics["onnx_max_abs_error"].values())
    assert 0 <= metrics["accuracy_after"] <= 1
    assert result["data"]["fingerprint"]
    for file in result["artifacts"].values():
        assert (finished / file).is_file()
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 4
    assert not finished.with_name("run.partial").exists()
    assert not (finished / "checkpoints").exists()


def test_saved_models_are_what_the_result_says(finished: Path, capsys) -> None:
    from edge_shared.artifacts import load_model
    from edge_shared.data.vision import load_images
    from edge_shared.training import evaluate

    test = load_images("digits", limit=128).loader("test", 256)
    metrics = json.loads((finished / "result.json").read_text())["metrics"]
    for name, when in (("dense", "before"), ("merged", "after")):
        model = load_model(finished / name)
        assert evaluate(model, test)["accuracy"] == pytest.approx(metrics[f"accuracy_{when}"])
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    code, out, _ = call(capsys, "bench", str(finished / "dense"), str(finished / "merged"), "--repeats", "30", "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document["latency"]) == {"ONNX Runtime", "torch"}
    assert all(value["low"] <= value["ratio"] <= value["high"] for value in document["latency"].values())


def test_merge_and_export_of_a_folder(finished: Path, tmp_path: Path, capsys) -> None:
    dense = str(finished / "dense")
    arguments = (
        "merge",
        "--model",
        dense,
        "--linear",
        "all",
        "--policy",
        "always",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "m"),
        "--json",
    )
    code, out, _ = call(capsys, *arguments)
    document = json.loads(out)
    assert code == 0
    assert len(document["metrics"]["made_linear"]) == 13
    assert document["cost"]["layers_after"] < document["cost"]["layers_before"]
    assert document["metrics"]["certificates"][0]["max_rel_data"] < 1e-4
    code, out, _ = call(capsys, "export", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "e"), "--json")
    assert code == 0
    assert json.loads(out)["onnx_max_abs_error"] < 1e-3
    assert (tmp_path / "e" / "model.onnx").is_file()


def test_a_board_that_is_too_small_is_a_failed_check(tmp_path: Path, capsys) -> None:
    (tmp_path / "tiny.toml").write_text('name = "tiny"\nkind = "mcu"\nclock_hz = 1000000\nram_total = 1024\nram_largest_region = 1024\n')
    arguments = (
        "merge",
        "--model",
        "residual",
        "--input-shape",
        "1,8,8",
        "--device",
        str(tmp_path / "tiny.toml"),
        "--out",
        str(tmp_path / "o"),
    )
    code, out, err = call(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert "tiny has 1 KiB" in err
    assert not (tmp_path / "o.partial").exists()


@pytest.mark.slow
def test_a_network_that_is_not_faster_is_given_up_for_the_dense_one(tmp_path: Path, capsys, monkeypatch) -> None:
    from depthprune import job
    from depthprune.latency import Comparison, Timing

    ms = Timing(1.0, 0.9, 1.1, 20)
    monkeypatch.setattr(job, "compare_onnx", lambda *arguments: Comparison(ms, ms, 1.0, 0.9, 1.1))
    arguments = [*FAST, "--policy", "latency", "--epochs", "0", "--finetune-epochs", "0", "--layers", "2", "--limit", "64"]
    code, out, _ = call(capsys, "prune", "--data", "digits", "--out", str(tmp_path / "o"), *arguments, "--json")
    document = json.loads(out)
    assert code == 0
    assert "so the dense one is written" in document["metrics"]["merge_refused"]
    assert document["metrics"]["removed"] == document["metrics"]["certificates"] == []
    assert document["cost"]["layers_after"] == document["cost"]["layers_before"]
    assert document["metrics"]["accuracy_after"] == document["metrics"]["accuracy_before"]
    saved = [(tmp_path / "o" / name / "model.safetensors").read_bytes() for name in ("dense", "merged")]
    assert saved[0] == saved[1]


def test_a_model_for_other_classes_fails_before_anything_is_written(finished: Path, tmp_path: Path, capsys) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    few = digits.target < 4
    x, y = (digits.images[few] * 15).astype("uint8"), digits.target[few]
    np.savez(tmp_path / "four.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])
    code, _, err = call(
        capsys, "prune", "--model", str(finished / "dense"), "--data", str(tmp_path / "four.npz"), "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "10" in err
    assert "4 classes" in err
    assert not (tmp_path / "o.partial").exists()


def test_analyze_names_every_activation(finished: Path, capsys) -> None:
    code, out, _ = call(capsys, "analyze", "--model", str(finished / "dense"), "--limit", "64", "--json")
    report = json.loads(out)
    assert code == 0
    assert len(report["sites"]) == 13
    for site in report["sites"]:
        assert site["always_on"] + site["always_off"] + site["mixed"] == site["neurons"]
        assert 0 <= site["entropy"] <= 1
        assert 0 <= site["unexplained"] <= 1
    assert sum(site["barrier"] is None for site in report["sites"]) == 8
    code, out, _ = call(capsys, "analyze", "--model", str(finished / "dense"), "--limit", "64")
    assert code == 0
    assert "blocks" in out


BAD = [
    (["prune", "--data", "digits", "--model", "nonsense", "--out", "{tmp}/o"], "known are residual"),
    (["prune", "--data", "nothing", "--out", "{tmp}/o"], "no data set named"),
    (["prune", "--data", "digits", "--method", "magic", "--epochs", "0", "--out", "{tmp}/o"], "affine, easier, egp"),
    (["prune", "--data", "digits", "--policy", "fast", "--out", "{tmp}/o"], "--policy fast"),
    (["prune", "--data", "digits", "--padding", "zero", "--out", "{tmp}/o"], "--padding zero"),
    (["prune", "--data", "digits", "--runtime", "gpu", "--out", "{tmp}/o"], "--runtime gpu"),
    (["prune", "--data", "digits", "--device", "toaster", "--out", "{tmp}/o"], "unknown device"),
    (["prune", "--data", "digits", "--device", "stm32h743", "--policy", "latency", "--out", "{tmp}/o"], "say nothing about stm32h743"),
    (["prune", "--data", "digits", "--lr", "0", "--out", "{tmp}/o"], "--lr is 0"),
    (["merge", "--model", "residual", "--input-shape", "1,8,8", "--device", "toaster", "--out", "{tmp}/o"], "unknown device"),
    (["prune", "--data", "digits"], "--out DIR"),
    (["prune", "--data", "digits", "--layers", "99", "--epochs", "0", "--out", "{tmp}/o"], "only 8 of 13"),
    (["prune", "--data", "digits", "--tolerance", "2", "--out", "{tmp}/o"], "--tolerance is 2"),
    (["prune", "--data", "digits", "--candidates", "some", "--epochs", "0", "--out", "{tmp}/o"], "worth, mergeable or all"),
    (["prune", "--resume", "{tmp}/absent"], "no interrupted run"),
    (["prune", "--data", "digits", "--weights", "{tmp}/other.safetensors", "--out", "{tmp}/o"], "weights of another model"),
    (["prune", "--data", "digits", "--weights", "{tmp}/text.txt", "--out", "{tmp}/o"], "no file of weights"),
    (["prune", "--data", "digits", "--epochs", "-1", "--out", "{tmp}/o"], "--epochs"),
    (["merge", "--model", "residual", "--out", "{tmp}/o"], "--input-shape is needed"),
    (["merge", "--model", "residual", "--input-shape", "1,8", "--out", "{tmp}/o"], "channels,height,width"),
    (["merge", "--model", "residual", "--input-shape", "1,8,8", "--linear", "foo", "--out", "{tmp}/o"], "no activation is called"),
    (["bench", "{tmp}", "{tmp}"], "no model folder"),
    (["bench", "{tmp}/text.txt", "{tmp}/text.txt"], "cannot be run by ONNX Runtime"),
    (["export", "--model", "{tmp}", "--out", "{tmp}/o"], "no model folder"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD)
def test_bad_input_is_one_clear_line_and_exit_2(arguments, text, tmp_path: Path, capsys) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.txt").write_text("hello")
    code, out, err = call(capsys, *[argument.format(tmp=tmp_path) for argument in arguments])
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2
    assert out == ""
    assert len(lines) == 1
    assert text in lines[0]
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.partial").exists()


def test_layers_that_accuracy_does_not_allow_are_a_failed_check(tmp_path: Path, capsys) -> None:
    arguments = ("--layers", "8", "--epochs", "3", "--finetune-epochs", "0", "--tolerance", "0", "--batch-size", "32", "--limit", "400")
    code, _, err = call(capsys, "prune", "--data", "digits", "--out", str(tmp_path / "o"), *arguments)
    assert code == 1
    assert "of the 8 layers asked for" in err


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from depthprune.cli import main; raise SystemExit(main())", "prune", "--data", "digits", *FAST[2:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--epochs", "4", "--layers", "4", "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True
    )
    killed = subprocess.Popen(
        [*command, "--epochs", "4", "--layers", "4", "--out", str(tmp_path / "cut")],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    mark = tmp_path / "cut.partial" / "checkpoints" / "finetune-1" / "checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not mark.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / "cut.partial").is_dir()
    assert not (tmp_path / "cut").exists()
    subprocess.run([*command[:3], "prune", "--resume", str(tmp_path / "cut")], check=True, env=environment, capture_output=True)
    for name in ("dense", "merged"):
        assert (tmp_path / "whole" / name / "model.safetensors").read_bytes() == (
            tmp_path / "cut" / name / "model.safetensors"
        ).read_bytes()
