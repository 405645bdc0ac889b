"""The commands as a user runs them: train, search, pareto, extract, design; bad input; exit codes."""

import json

import pytest
from edge_shared.artifacts import load_model
from edge_shared.cli import run
from moofa.cli import app
from moofa.space import Space, load_space


def call(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = run(app, [*arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out.strip() else {}, captured.err


def test_from_digits_to_files(tmp_path, capsys):
    model, found = tmp_path / "supernet", tmp_path / "found"
    code, trained, _ = call(
        capsys, "train", "--space", "digits8", "--data", "digits", "--epochs", "1", "--networks", "12", "--out", str(model)
    )
    assert code == 0
    assert trained["metrics"]["networks_measured"] == 12
    assert {file.name for file in model.iterdir()} >= {
        "result.json",
        "report.html",
        "supernet.safetensors",
        "predictor.safetensors",
        "training.png",
    }
    assert not list(model.glob("phase-*"))

    code, one, _ = call(capsys, "search", "--model", str(model), "--budget", "3.5KiB", "--out", str(found))
    assert code == 0
    assert one["feasible"]
    assert one["cost"]["ram"] <= 3584
    assert {"metrics", "cost", "artifacts", "choice", "network"} <= set(one)
    assert {"memory.png", "memory.svg", "architecture.png", "pareto.png", "choice.json", "report.html"} <= {
        file.name for file in found.iterdir()
    }

    code, none, error = call(capsys, "search", "--model", str(model), "--budget", "2kB")
    assert code == 1
    assert none["smallest"] == {"ram": 2560}
    assert "the smallest needs 2,560 bytes" in error
    assert len(error.splitlines()) == 1

    code, front, _ = call(capsys, "pareto", "--model", str(model), "--generations", "2", "--population", "20", "--costs", "ram,macs")
    assert code == 0
    assert front["metrics"]["networks"] == len(front["front"])
    assert call(capsys, "pareto", "--model", str(model), "--costs", "joules")[0] == 2

    out = tmp_path / "network"
    code, network, _ = call(
        capsys, "extract", "--model", str(model), "--choice", str(found / "choice.json"), "--epochs", "1", "--out", str(out)
    )
    assert code == 0
    assert not list(out.glob("fine-tuning*"))
    assert (
        network["cost"]["measured_live_bytes_float32"] == network["cost"]["predicted_live_bytes_float32"] == 4 * one["cost"]["peak_items"]
    )
    assert network["metrics"]["test_accuracy"] == pytest.approx(network["metrics"]["test_accuracy_onnx"], abs=1e-9)
    assert network["metrics"]["test_accuracy_int8"] > network["metrics"]["test_accuracy"] - 0.1
    assert sum(parameter.numel() for parameter in load_model(out / "model").parameters()) == one["cost"]["params_with_bn"]

    # The network that search writes is what profile reads.
    file = tmp_path / "network.json"
    file.write_text(json.dumps(one["network"]))
    assert run(app, ["profile", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == one["cost"]["peak_bytes"]


def test_design_writes_a_space_that_train_reads(tmp_path, capsys):
    file = tmp_path / "space.json"
    code, document, _ = call(capsys, "design", "--budget", "16kB", "--resolution", "28", "--in-channels", "1", "--out", str(file))
    assert code == 0
    assert document["largest"]["ram"] <= 16_000
    assert load_space(str(file)) == Space.from_json(document["space"])
    code, document, error = call(capsys, "design", "--budget", "100", "--resolution", "28")
    assert code == 1
    assert document["feasible"] is False
    assert "narrowest" in error


def test_defect_8_unknown_names_and_swapped_settings_are_refused(tmp_path, capsys):
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"stem": {"out": 8}, "stages": [{"width": 8, "expands": [4, 2]}]}))
    for arguments, message in (
        (["train", "--space", "MOOVA_V1", "--out", str(tmp_path / "a")], "unknown space 'MOOVA_V1'; presets are"),
        (["train", "--space", str(space), "--out", str(tmp_path / "a")], "ascending"),
        (["train", "--schedule", "both", "--out", str(tmp_path / "a")], "sandwich, progressive"),
        (["train"], "--out DIR"),
        (["search", "--model", str(tmp_path / "none"), "--budget", "1kB"], "is no supernet"),
        (["design", "--resolution", "28"], "needs a RAM budget"),
        (["design", "--budget", "many", "--resolution", "28"], "is no byte size"),
        (["design", "--budget", "9kB", "--kernels", "3;5"], "--kernels"),
        (["design", "--budget", "9kB", "--kernels", "4"], "odd"),
    ):
        code, _, error = call(capsys, *arguments)
        assert code == 2, arguments
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_defect_9_unknown_options_are_errors_not_swallowed():
    space = load_space("digits8")
    from edge_shared.errors import InputError

    with pytest.raises(InputError, match=r"expand_ratio"):
        Space.from_json({**space.model_dump(mode="json"), "expand_ratio": 4})
    with pytest.raises(InputError, match="depth 3 is not in the space"):
        space.check(type(space.largest())(8, (((3, 2.0),) * 3, ((3, 2.0),))))
