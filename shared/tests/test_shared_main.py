"""The `edge` command."""

import json
import shutil
import subprocess
import sys

import pytest
from edge_shared import devices, doctor
from edge_shared.cli import run
from edge_shared.main import app


def test_doctor_says_what_is_there_and_what_is_missing_for_what(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: "/usr/bin/git" if command == "git" else None)
    assert run(app, ["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["torch"]["found"]
    assert checks["torch"]["detail"] == document["environment"]["versions"]["torch"]
    assert checks["Git"]["detail"] == "/usr/bin/git"
    assert not checks["QEMU (ARM microcontrollers)"]["found"]
    assert "apt install qemu" in checks["QEMU (ARM microcontrollers)"]["detail"]
    assert set(document["missing"]) == {name for name, check in checks.items() if not check["found"]}
    assert all(check["used_for"] for check in checks.values())


def test_a_package_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    diagnosis = doctor.diagnose()
    assert "torch" in diagnosis.missing
    assert next(check for check in diagnosis.checks if check.name == "ray").detail == "pip install 'edge-shared[ray]'"


def test_doctor_shows_a_table(capsys):
    assert run(app, ["doctor"]) == 0
    text = capsys.readouterr().out
    assert "SocketCAN" in text
    assert "GPU" in text


def test_devices_lists_all_profiles_and_shows_one(capsys, tmp_path):
    assert run(app, ["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [device["name"] for device in listed] == [devices.load(name).name for name in devices.names()]
    assert run(app, ["devices", "stm32h743", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["ram_largest_region"] == devices.load("stm32h743").ram_largest_region
    assert run(app, ["devices"]) == 0
    assert "stm32h743" in capsys.readouterr().out.lower()
    assert run(app, ["devices", "stm32h743"]) == 0
    assert "source:" in capsys.readouterr().out
    (tmp_path / "mine.toml").write_text("name = 'x'")
    for wrong in ("commodore", str(tmp_path / "mine.toml"), str(tmp_path / "none.toml")):
        assert run(app, ["devices", wrong]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["devices", "--help"], ["doctor", "--help"], ["--version"]])
def test_help_needs_no_heavy_import(arguments):
    code = (
        "import sys; from edge_shared.main import app; from edge_shared.cli import run; code = run(app, sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'matplotlib', 'psutil'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
