"""What a release needs: one version, a changelog entry, typed wheels that pass twine, workflows that call what `.ci/run` calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECTS = [*sorted(path.parent for folder in ("packages", "apps") for path in (ROOT / folder).glob("*/pyproject.toml")), ROOT / "shared"]


def project(folder: Path) -> dict[str, object]:
    table = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert isinstance(table, dict)
    return table


def test_one_version_that_the_changelog_knows() -> None:
    versions = {str(project(folder)["version"]) for folder in [*PROJECTS, ROOT]}
    assert len(versions) == 1
    version = versions.pop()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_metadata(folder: Path) -> None:
    table = project(folder)
    assert table["license"] == "Apache-2.0"
    assert (folder / str(table["readme"])).stat().st_size > 400, "a README that says what it is"
    [package] = (folder / "src").iterdir()
    assert (package / "py.typed").exists()


def test_citation_names_the_sixteen_papers() -> None:
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert len(references) == 16
    assert all(entry["authors"] and entry["title"] and entry["year"] for entry in references)


def test_workflows_call_what_ci_calls() -> None:
    """What a contributor runs is what the servers run."""
    commands = [
        str(step["run"])
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert ".ci/run" in commands
    assert "uv run pytest" in commands
    assert "uv run pytest" in (ROOT / ".ci/run").read_text()


@pytest.mark.slow
def test_wheels(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path")
    subprocess.run([uv, "build", "--quiet", "--all-packages", "--out-dir", tmp_path], cwd=ROOT, check=True)
    files = sorted(path for path in tmp_path.iterdir() if path.suffix in (".whl", ".gz"))
    assert len(files) == 2 * len(PROJECTS)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, capture_output=True)
    for path in tmp_path.glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            assert [name for name in wheel.namelist() if name.endswith("/py.typed")], path.name
