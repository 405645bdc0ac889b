"""The site is true: tutorials and examples run as printed, its ledger is what the records say, it builds without a warning."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if PYTHON.search(path.read_text()))


@pytest.fixture(scope="module")
def ledger() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ledger", ROOT / "benchmarks" / "ledger.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.timeout(900)
def test_tutorial_runs_top_to_bottom(path: Path, tmp_path: Path) -> None:
    """A line that is meant to fail says so itself, by ``|| true``."""
    script = "\n".join(SHELL.findall(path.read_text()))
    assert script, "a tutorial has ```sh blocks"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"}
    script = re.sub(r"\buv run ", "", script)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_hold(path: Path, tmp_path: Path) -> None:
    code = "\n".join(PYTHON.findall(path.read_text()))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """mkdocs in strict mode: a dead link, a page in no menu, a docstring that does not parse fails."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "--site-dir",
        str(tmp_path),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peak" in (tmp_path / "api" / "edge_shared" / "index.html").read_text()


def test_ledger_is_what_the_records_say(ledger: ModuleType) -> None:
    assert (DOCS / "reproduction.md").read_text() == ledger.page()


def test_every_method_of_the_papers_has_a_row(ledger: ModuleType) -> None:
    text = ledger.page().lower()
    papers = [
        "egp",
        "nepenthe",
        "tlc",
        "hosvd",
        "asi",
        "wasi",
        "velocity",
        "scotti",
        "trady",
        "medyate",
        "moofa",
        "ffw",
        "voronoi",
        "graphids",
        "can",
        "tinyeeg",
    ]
    assert [name for name in papers if f"`{name}" not in text and name not in text] == []


def test_placeholders(ledger: ModuleType) -> None:
    record = {"rows": [{"name": "a", "x": 1.25}, {"name": "b", "x": 2.5, "list": [7, 8]}]}
    assert ledger.fill("{rows.0.x:.1f} and {rows.?name=b.list.1} of {rows.?name=b.x}", record) == "1.2 and 8 of 2.5"
    for path in ("rows.?name=c.x", "rows.0.y"):
        with pytest.raises(KeyError):
            ledger.lookup(record, path)


def test_a_row_without_a_record_says_so(ledger: ModuleType) -> None:
    entry = {"paper": "p", "method": "m", "claim": "c", "results": "absent.json", "reproduced": "{x}", "not_reproduced": "", "command": ""}
    assert "| not run |" in ledger.row(entry, Path("ledger.toml"))
    with pytest.raises(SystemExit, match="claim"):
        ledger.row({key: value for key, value in entry.items() if key != "claim"}, Path("ledger.toml"))


def test_records_name_their_command() -> None:
    """A record without the command that made it is a number that nobody can check."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        if path.name.endswith(".partial.json"):  # a run that goes on
            continue
        record = json.loads(path.read_text())
        assert isinstance(record, dict), path.name
        assert record.get("command"), path.name
