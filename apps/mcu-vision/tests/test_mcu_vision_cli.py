"""The command as a user runs it."""

import json
import shutil

import pytest
from edge_shared import cli
from mcu_vision import workflow
from mcu_vision.cli import app

needs_qemu = pytest.mark.skipif(not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")), reason="no qemu-system-arm")


def call(capsys, *words):
    code = cli.run(app, ["build", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_users_own_network_becomes_firmware(saved, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, _ = call(capsys, "--model", saved, "--images", 4, "--out", out, "--json")
    assert code == 0
    document = json.loads(text)
    cost, metrics = document["cost"], document["metrics"]
    assert abs(metrics["test_accuracy_int8"] - metrics["test_accuracy_float"]) < 0.02
    assert cost["arena_planned_bytes"] == cost["arena_lower_bound_bytes"]
    if cost["linked_data_bss_bytes"] is not None:
        assert cost["linked_data_bss_bytes"] == -(-cost["arena_planned_bytes"] // 8) * 8 + cost["answer_bytes"]
    result = json.loads((out / "result.json").read_text())
    assert result["cost"] == cost
    assert "arena" in (out / "report.html").read_text()
    assert (out / "firmware" / "mv_net.c").is_file()


@needs_qemu
def test_the_whole_way_from_images_and_a_resume_that_trains_nothing_twice(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["--limit", 120, "--epochs", 1, "--networks", 10, "--fine-tune", 0, "--images", 2]
    stop = workflow.write_sources
    monkeypatch.setattr(workflow, "write_sources", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    code, _, _ = call(capsys, *words, "--out", out)
    assert code == 130
    monkeypatch.setattr(workflow, "write_sources", stop)
    monkeypatch.setattr(workflow, "_find", lambda *_: pytest.fail("the network was found already"))
    code, text, _ = call(capsys, "--resume", out, "--json")
    assert code == 0
    document = json.loads(text)
    assert document["metrics"]["emulated_outputs_equal"] is True
    assert document["cost"]["arena_predicted_by_moofa_bytes"] == document["cost"]["arena_planned_bytes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "3kB"], "the network needs"),
        (["--flash", "4kB"], "constants alone take"),
    ],
)
def test_a_broken_budget_is_exit_code_1(words, said, saved, tmp_path, capsys):
    code, text, err = call(capsys, "--model", saved, *words, "--out", tmp_path / "out", "--json")
    assert code == 1
    assert json.loads(text)["fits"] is False
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "pi-4b"], "core 'Arm Cortex-A72'"),
        (["--device", "esp32-s3"], "core 'Xtensa LX7'"),
        (["--device", "nothing"], "unknown device"),
        (["--budget", "1GiB"], "stm32f746 has"),
        (["--budget", "many"], "many"),
        (["--model", "/nowhere"], "holds neither a saved network"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(words, said, tmp_path, capsys):
    code, text, err = call(capsys, *words, "--out", tmp_path / "out")
    assert (code, text) == (2, "")
    assert said in err
    assert err.count("\n") == 1
