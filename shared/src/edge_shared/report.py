"""What a run leaves behind: result.json, plots, and one HTML page that needs nothing else."""

from __future__ import annotations

import html
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_shared.errors import InputError
from edge_shared.files import atomic_path, plain, read_json, read_text, write_json, write_text
from edge_shared.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#1f2430", "#d8dce3"
COLOURS = ("#2563eb", "#e07a1f", "#12946a", "#c23b6d", "#7a5bd0", "#8a6d3b", "#3aa3c4", "#6b7280")
_PACKAGES = (
    "edge-shared", "depthprune", "ondevice-train", "moofa", "fairnet", "edge-ids", "tinyeeg",
    "numpy", "scipy", "scikit-learn", "torch", "torchvision", "timm", "onnxruntime", "lightning-fabric", "mne", "polars",
)  # fmt: skip


class DataInfo(BaseModel):
    """The data that a result was computed on."""

    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str | None = None  # SHA-256 over what was used
    synthetic: bool = False
    counts: dict[str, int] = {}  # samples of each part


class Environment(BaseModel):
    """The machine and the versions that a result was computed with."""

    model_config = ConfigDict(extra="forbid")

    python: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    gpu: str | None = None
    versions: dict[str, str] = {}


class Result(BaseModel):
    """result.json of every command that writes a folder.

    Attributes:
        command: the command line, or the name of the function.
        metrics: what was measured, plain values; a name ends in its unit where it has one (``latency_ms``).
        cost: what it takes: bytes, MACs, seconds; estimates are named so.
        artifacts: name -> file in the same folder.
        seed: of everything random.
        data: what it was computed on.
        settings: every option that matters.
        notes: what a reader must know.
        created: UTC time; set by `write_result`.
        environment: set by `write_result`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal["edgewise-result-1"] = "edgewise-result-1"
    command: str
    metrics: dict[str, Any]
    cost: dict[str, Any] = {}
    artifacts: dict[str, str] = {}
    seed: int | None = None
    data: DataInfo | None = None
    settings: dict[str, Any] = {}
    notes: list[str] = []
    created: datetime | None = None
    environment: Environment | None = None


@dataclass(frozen=True)
class Table:
    """Rows under columns; a column names its unit, the first is to the left."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report: a title, paragraphs (blank lines between, `code` in backticks), a table, figures by name."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[str] = field(default=())


def environment() -> Environment:
    """Describe this machine and the versions installed, without importing any of them."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpu=_gpu(),
        versions=versions,
    )


def write_result(folder: str | Path, result: Result) -> Path:
    """Write ``result.json``, with the time and the environment added.

    Raises:
        InputError: if an artifact is not in the folder, or the folder cannot be written.
    """
    folder = Path(folder)
    for name, file in result.artifacts.items():
        if not (folder / file).exists():
            raise InputError(f"the artifact {name} ({file}) is not in {folder}")
    full = result.model_copy(update={"created": datetime.now(UTC), "environment": environment()})
    # What cannot be said in JSON (NaN, arrays) is made plain before the schema is checked.
    write_json(folder / "result.json", Result.model_validate({**plain(dict(full)), "created": full.created}))
    return folder / "result.json"


def read_result(path: str | Path) -> Result:
    """Read a ``result.json``, or that of a folder.

    Raises:
        InputError: if it is absent or not of the schema; the message names the field.
    """
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        return Result.model_validate(read_json(path, "result"))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"result {path}: {'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}") from error


@contextmanager
def style() -> Iterator[None]:
    """The look of all plots, inside the block only."""
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context(
        {
            "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False,
            "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
            "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
            "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "font.size": 10,
            "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 2, "lines.markersize": 5,
            "figure.figsize": (7, 3.8), "figure.dpi": 150, "savefig.dpi": 150, "figure.constrained_layout.use": True,
            "svg.fonttype": "none", "svg.hashsalt": "edgewise", "font.family": "sans-serif", "image.cmap": "viridis",
        }
    ):  # fmt: skip
        yield


@contextmanager
def figure(folder: str | Path, name: str, *, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.8)) -> Iterator[Any]:
    """Draw in the house style and save as ``NAME.png`` and ``NAME.svg`` when the block ends.

    Args:
        folder: where to.
        name: of both files; a `Section` takes it.
        rows: of axes.
        columns: of axes.
        size: width and height in inches.

    Yields:
        One matplotlib `Axes`, or an array of them if there are several.
    """
    from matplotlib.figure import Figure

    with style():
        drawing = Figure(figsize=size)
        axes: Axes = drawing.subplots(rows, columns)
        yield axes
        save_figure(drawing, folder, name)


def save_figure(fig: Figure, folder: str | Path, name: str) -> str:
    """Save a matplotlib figure as ``NAME.png`` and ``NAME.svg``, atomically; returns `name`."""
    folder = Path(folder)
    with style():
        for suffix, options in (
            ("png", {"facecolor": "white"}),
            ("svg", {"transparent": True, "metadata": {"Date": None, "Creator": None}}),
        ):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                fig.savefig(temporary, format=suffix, **options)
    return name


def write_html(folder: str | Path, title: str, sections: Sequence[Section], result: Result | None = None) -> Path:
    """Write ``report.html``: one file, nothing fetched, light or dark as the reader's system is.

    Args:
        folder: holds the SVG files of the figures that the sections name.
        title: of the page.
        sections: in order.
        result: adds the command, a warning if the data are synthetic, the settings and the environment.

    Raises:
        InputError: if a figure is absent, or the folder cannot be written.
    """
    folder = Path(folder)
    parts = [_section(folder, section) for section in sections]
    head = foot = ""
    if result is not None:
        head = f'<p class="command"><code>{html.escape(result.command)}</code></p>'
        if result.data is not None and result.data.synthetic:
            head += '<p class="warning">These data are synthetic: made up by a program, not measured.</p>'
        head += "".join(f'<p class="note">{_inline(note)}</p>' for note in result.notes)
        foot = _provenance(result)
    write_text(
        folder / "report.html",
        _PAGE.format(title=html.escape(title), head=head, body="\n".join(parts), foot=foot, css=_CSS),
    )
    return folder / "report.html"


def _section(folder: Path, section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{_inline(text)}</p>" for text in re.split(r"\n\s*\n", section.text.strip()) if text]
    if section.table is not None:
        parts.append(_table(section.table))
    parts += [f"<figure>{_svg(folder / f'{name}.svg')}</figure>" for name in section.figures]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _table(table: Table) -> str:
    caption = f"<caption>{_inline(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    body = ""
    for row in table.rows:
        first, *rest = row
        body += f'<tr><th scope="row">{_cell(first)}</th>' + "".join(f"<td>{_cell(value)}</td>" for value in rest) + "</tr>\n"
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return html.escape(str(value))


def _svg(path: Path) -> str:
    """The SVG for a page: without its XML head, its colours of text and grid those of the page."""
    text = read_text(path, "figure")
    start = text.find("<svg")
    if start < 0 or "<script" in text.lower():
        raise InputError(f"{path} is no plot (SVG without scripts)")
    return text[start:].replace(INK, "currentColor").replace(GRID, "var(--grid)")


def _provenance(result: Result) -> str:
    rows: list[tuple[str, Any]] = [("Seed", result.seed)]
    if result.data is not None:
        counts = ", ".join(f"{count:,} {part}" for part, count in result.data.counts.items())
        rows += [("Data", result.data.name + (f" ({counts})" if counts else "")), ("Data fingerprint", result.data.fingerprint)]
    rows += [(name, value if not isinstance(value, dict | list) else str(plain(value))) for name, value in result.settings.items()]
    here = environment()
    rows += [
        ("Machine", f"{here.processor}, {here.cores} cores, {format_bytes(here.memory_bytes)}" + (f", {here.gpu}" if here.gpu else "")),
        ("System", f"{here.system}, Python {here.python}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in here.versions.items())),
    ]
    body = "".join(f'<tr><th scope="row">{html.escape(name)}</th><td>{_cell(value)}</td></tr>' for name, value in rows if value is not None)
    return f'<section class="provenance"><h2>How this was made</h2><div class="scroll"><table>{body}</table></div></section>'


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """The name of the first NVIDIA GPU, asked of its driver's files, so that torch need not be imported."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"Model:\s*(.+)", file.read_text(encoding="utf-8", errors="replace"))
        if match:
            return match[1].strip()
    return None


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{head}</header>
{body}
{foot}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1f2430; --soft: #5b6472; --grid: #d8dce3; --line: #e4e7ec;
  --accent: #2563eb; --warn: #b45309; --warn-page: #fff7e6; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1a1f28; --ink: #e6e9ef; --soft: #9aa4b2; --grid: #343c49;
  --line: #2a313c; --accent: #7aa5ff; --warn: #fbbf24; --warn-page: #2b2412; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
p { margin: 0 0 .9rem; max-width: 46rem; }
code { font: .88em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
p code, td code { background: color-mix(in srgb, var(--ink) 8%, transparent); padding: .1em .35em; border-radius: .3em; }
.command { color: var(--soft); }
.note { color: var(--soft); }
.warning { color: var(--warn); background: var(--warn-page); border-left: 4px solid var(--warn); padding: .6rem .9rem; border-radius: .3rem; font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1.4rem 1.5rem; margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 .6rem; }
th, td { padding: .45rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 7%, transparent); }
figure { margin: .75rem 0 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 54rem; margin: 0 auto; color: var(--ink); }
.provenance { font-size: .9rem; color: var(--soft); }
.provenance td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.provenance th { text-align: left; font-weight: 600; vertical-align: top; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
