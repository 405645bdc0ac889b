"""Every command of every package keeps the contract of the command line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from edge_shared import cli

COMMANDS = {
    "edge": "edge_shared.main",
    "depthprune": "depthprune.cli",
    "ondevice-train": "ondevice_train.cli",
    "moofa": "moofa.cli",
    "fairnet": "fairnet.cli",
    "edge-ids": "edge_ids.cli",
    "tinyeeg": "tinyeeg.cli",
    "pi-adapt": "pi_adapt.cli",
    "mcu-vision": "mcu_vision.cli",
    "mcu-attention": "mcu_attention.cli",
    "pi-gateway": "pi_gateway.cli",
}
LIGHT = {"torch", "matplotlib", "sklearn", "polars", "mne", "scipy", "pymoo", "can", "onnxruntime"}


def application(name: str) -> typer.Typer:
    app = importlib.import_module(COMMANDS[name]).app
    assert isinstance(app, typer.Typer)
    return app


def commands(app: typer.Typer, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all commands, groups walked into."""
    found = [(*prefix, item.name or item.callback.__name__.replace("_", "-")) for item in app.registered_commands if item.callback]
    for group in app.registered_groups:
        if group.typer_instance:
            found += commands(group.typer_instance, (*prefix, group.name or ""))
    return found


ALL = [(name, path) for name in COMMANDS for path in commands(application(name))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_installed_and_starts_light(name: str) -> None:
    code = f"import sys, importlib; importlib.import_module('{COMMANDS[name]}'); print(sorted({LIGHT!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    script = Path(sys.executable).with_name(name)
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{name} 0.")


@pytest.mark.parametrize(("name", "path"), ALL, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_help_and_typos(name: str, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    app = application(name)
    assert cli.run(app, [*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    assert cli.run(app, [*path, "--frobnicate"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("name", "path"), ALL, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_every_option_is_in_full_words_and_explained(name: str, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """No option has only a short form, and each says what it does."""
    app = application(name)
    cli.run(app, [*path, "--help"])
    capsys.readouterr()
    command = typer.main.get_command(app)
    for part in path:
        command = command.commands[part]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert any(option.startswith("--") for option in parameter.opts), parameter.opts
            assert parameter.help, f"{name} {' '.join(path)}: {parameter.opts} has no help"


def test_an_unknown_file_is_named(tmp_path: Path) -> None:
    """The commands that take a file say which one is missing."""
    missing = tmp_path / "missing.json"
    cases = [["moofa", "profile", str(missing)], ["edge-ids", "can", "inspect", str(missing)], ["fairnet", "audit", str(missing)]]
    for name, *arguments in cases:
        done = subprocess.run(
            [Path(sys.executable).with_name(name), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert done.returncode == 2, (name, arguments, done.stderr)
        assert str(missing) in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_doctor_speaks_json() -> None:
    done = subprocess.run([Path(sys.executable).with_name("edge"), "doctor", "--json"], capture_output=True, text=True, check=True)
    assert isinstance(json.loads(done.stdout), dict)
