"""The command-line contract and the files that survive a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edge_shared import cli
from edge_shared.errors import CheckFailed, InputError, MissingExtra, require
from edge_shared.files import atomic_path, open_run, plain, read_json, write_json, write_text
from edge_shared.units import format_bytes, format_count, parse_bytes
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def app() -> cli.typer.Typer:
    app = cli.application("edge", "A test.")

    @app.command()
    def work(outcome: str, as_json: cli.Json = False) -> None:
        """Do something."""
        errors = {
            "input": InputError("the file x is no good;\n use y"),
            "check": CheckFailed("a leak was found"),
            "bug": KeyError("oops"),
            "memory": MemoryError(),
            "stop": KeyboardInterrupt(),
            "disk": OSError(28, "No space left on device", "/tmp/x"),
        }
        if outcome in errors:
            raise errors[outcome]
        cli.say("working")
        cli.emit({"value": np.float32(0.5), "nan": float("nan")}, as_json)

    return app


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["work", "input"], 2, "the file x is no good; use y"),
        (["work", "check"], 1, "a leak was found"),
        (["work", "bug"], 70, "--debug shows where"),
        (["work", "memory"], 2, "out of memory"),
        (["work", "disk"], 2, "/tmp/x: No space left on device"),
        (["work", "stop"], 130, "interrupted"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["work", "--frob"], 2, "No such option: --frob"),
        (["work"], 2, "Missing argument"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(app, capsys, arguments, code, words) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(app, arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_wherever_it_stands(app) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(KeyError):
        cli.run(app, ["work", "bug", "--debug"])
    with pytest.raises(InputError):
        cli.run(app, ["--debug", "work", "input"])


def test_json_is_one_document_on_stdout(app, capsys) -> None:  # type: ignore[no-untyped-def]
    assert cli.run(app, ["work", "fine", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"value": 0.5, "nan": None}
    assert err == "working\n"


def test_a_missing_extra_names_the_pip_command() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'edge-ids\[torch\]'"):
        require("a_module_that_is_not_there", "edge-ids[torch]")
    require("json", "nothing")


@pytest.mark.parametrize(
    ("text", "size"),
    [("256kB", 256_000), ("1.5MiB", 1_572_864), ("42", 42), ("1e3", 1000), ("2 GB", 2 * 10**9), (7, 7), ("64KiB", 65536), ("0.5kb", 500)],
)
def test_byte_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "0", "12 parsecs", "1.2.3", "kB", "nan", "1e400", "NaNkB"])
def test_bad_byte_sizes(text: str) -> None:
    with pytest.raises(InputError, match="byte size"):
        parse_bytes(text)


@given(st.integers(1, 10**15))
def test_a_formatted_size_reads_back_within_its_digits(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= 0.006 * size


def test_formats() -> None:
    assert [format_bytes(x) for x in (172 * 1024, 5, 1536)] == ["172 KiB", "5 B", "1.5 KiB"]
    assert [format_count(x) for x in (3_470_760, 12)] == ["3.47 M", "12"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def die_halfway() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places_and_bad_json_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})
    (tmp_path / "bad.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(InputError, match=r"bad\.json:2:6"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "binary"):
        with pytest.raises(InputError):
            read_json(path)


def test_plain_takes_what_results_hold(tmp_path: Path) -> None:
    assert plain({"a": np.int64(1), "b": (np.arange(2), tmp_path), 3: float("inf")}) == {"a": 1, "b": [[0, 1], str(tmp_path)], "3": None}


def test_a_run_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = open_run(out, None, {"seed": 1})
    assert not out.exists()
    write_json(first.path / "result.json", {"n": 1})
    first.commit()
    second = open_run(out, None, {"seed": 2})
    assert read_json(out / "result.json") == {"n": 1}  # the old result stays until the new one is whole
    again = open_run(None, out, {})
    assert again.resumed
    assert again.config == {"seed": 2} == second.config
    write_json(again.path / "result.json", {"n": 2})
    again.commit()
    assert read_json(out / "result.json") == {"n": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    with pytest.raises(InputError, match="it is finished"):
        open_run(None, out, {})


def test_somebody_elses_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("dear")
    with pytest.raises(InputError, match="no earlier result"):
        open_run(tmp_path, None, {})
    with pytest.raises(InputError, match="--out DIR"):
        open_run(None, None, {})
    with pytest.raises(InputError, match="no interrupted run"):
        open_run(None, tmp_path / "nothing", {})


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        "import sys\nfrom edge_shared import cli\napp = cli.application('edge', 'x')\n"
        "@app.command()\ndef many() -> None:\n    for i in range(100000):\n        cli.emit_line({'i': i})\n"
        "@app.command()\ndef other() -> None:\n    pass\n"
        "sys.exit(cli.run(app))\n"
    )
    with subprocess.Popen([sys.executable, str(script), "many"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline()) == {"i": 0}
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_imports_stay_light() -> None:
    """The command line starts without torch, matplotlib or pydantic."""
    code = "import sys, edge_shared.cli; print([m for m in ('torch', 'matplotlib', 'pydantic', 'sklearn', 'rich') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    assert done.stdout.strip() == "[]"
